"""Why something failed, in a few words."""

import errno

import pytest

from imagen_jax.parallel.processes import Failed, reason


@pytest.mark.parametrize(
  ("error", "expected"),
  [
    (
      OSError(errno.ENOSPC, "No space left on device"),
      "No space left on device",
    ),
    (ValueError("one\ntwo"), "ValueError: one"),
    (Failed("as another process said"), "as another process said"),
    (
      OSError("Forbidden: https://g/b/o\nno access to o"),  # gcsfs's
      "OSError: Forbidden: no access to o",
    ),
    (
      ValueError(  # TensorStore's
        "PERMISSION_DENIED: Error reading gs://b/o: no access "
        "[tensorstore_spec='{}'] [http_response_code='403']"
      ),
      "ValueError: PERMISSION_DENIED: Error reading gs://b/o: no access",
    ),
    (
      ValueError("DATA_LOSS: [source='a'] [os_error_code='28']"),
      "No space left on device",
    ),
    (
      ValueError("what " + "of this " * 50 + "and why"),
      f"ValueError: {('what ' + 'of this ' * 50)[:120]} ... "
      f"{('of this ' * 50 + 'and why')[-120:]}",
    ),
  ],
)
def test_it_is_short_and_has_the_cause(error, expected):
  assert reason(error) == expected
