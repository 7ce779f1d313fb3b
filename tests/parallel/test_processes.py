"""Why something failed on one of many processes; the rest is in test_files."""

import errno

import pytest

from imagen_jax.parallel.processes import Failed, reason, together


def test_another_processes_failure_is_as_it_said():
  assert reason(Failed("as another process said")) == "as another process said"
  assert reason(ValueError("one\ntwo")) == "ValueError: one"


def test_this_processes_own_failure_comes_first():
  def act():
    raise OSError(errno.ENOSPC, "No space left on device")

  with pytest.raises(Failed, match="^No space left on device$") as caught:
    together(act)
  again = Failed("another process failed")
  again.__context__ = caught.value
  assert reason(again) == "No space left on device"
