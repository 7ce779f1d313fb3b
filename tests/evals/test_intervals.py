"""Wilson's intervals."""

import math

import pytest

from imagen_jax.evals.intervals import wilson


@pytest.mark.parametrize(
  ("held", "count"), [(0, 10), (10, 10), (1, 1), (7, 10), (950, 1000)]
)
def test_ends_are_where_the_score_test_rejects(held, count):
  """|share - p| = 1.96 standard errors of p, at both ends p."""
  low, high = wilson(held, count)
  assert 0 <= low <= held / count <= high <= 1
  for end in (low, high):
    error = 1.959964 * math.sqrt(end * (1 - end) / count)
    assert abs(held / count - end) == pytest.approx(error, rel=1e-5)


def test_confidence_widens():
  narrow, wide = wilson(5, 10, 0.5), wilson(5, 10, 0.99)
  assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ((0, 0), "0 of 0 trials held, expected at least 1 trial"),
    ((4, 3), "4 of 3 trials held"),
    ((-1, 3), "-1 of 3 trials held"),
    ((1, 3, 1.0), "confidence is 1.0, expected above 0, below 1"),
  ],
)
def test_bad_input(args, message):
  with pytest.raises(ValueError, match=message):
    wilson(*args)
