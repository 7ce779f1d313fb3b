"""Confidence intervals of shares."""

from scipy import stats


def wilson(
  held: int, count: int, confidence: float = 0.95
) -> tuple[float, float]:
  """Computes Wilson's score interval of a share of independent trials.

  Unlike mean +- 2 standard errors, it stays in [0, 1] and has a width where all
  or none of the trials succeed.

  Args:
    held: trials that succeeded.
    count: all trials, at least 1.
    confidence: the interval's coverage, in (0, 1).

  Raises:
    ValueError: count is 0, held is not in 0..count, or confidence is out of
      range.
  """
  if count < 1 or not 0 <= held <= count:
    raise ValueError(
      f"{held} of {count} trials held, expected at least 1 trial, and 0 to all"
      " of them"
    )
  if not 0 < confidence < 1:
    raise ValueError(f"confidence is {confidence}, expected above 0, below 1")
  found = stats.binomtest(held, count).proportion_ci(confidence, "wilson")
  return float(found.low), float(found.high)
