"""Frechet distance of two sets of features, in float64."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

_GATHERED = 64 << 20  # bytes of all hosts' rows to hold at a time


@dataclasses.dataclass(frozen=True)
class FeatureStats:
  """Holds the moments of features, of which parts merge exactly.

  The moments are centred: sums of raw squares would lose digits.

  Attributes:
    count: number of examples.
    mean: float64 [d].
    scatter: float64 [d, d], the sum of (x - mean) (x - mean)^T over examples.
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def of(
    cls, features: np.ndarray, mask: np.ndarray | None = None
  ) -> "FeatureStats":
    """Computes the moments of a batch.

    Args:
      features: [B, d], finite numbers.
      mask: bool [B], False for rows that only fill the batch; None counts all.

    Raises:
      ValueError: features are no matrix or not finite, or mask has another
        length.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2:
      raise ValueError(f"features are {list(x.shape)}, expected [batch, d]")
    if mask is not None:
      mask = np.asarray(mask, bool)
      if mask.shape != x.shape[:1]:
        raise ValueError(
          f"mask is {list(mask.shape)}, expected [{len(x)}], one per row of"
          " features"
        )
      x = x[mask]
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if bad.size:
      raise ValueError(
        f"features have NaN or infinity in row {bad[0]}, expected finite"
        " numbers"
      )
    mean = x.mean(0) if len(x) else np.zeros(x.shape[1])
    centred = x - mean
    return cls(len(x), mean, centred.T @ centred)

  @property
  def dim(self) -> int:
    """The number d of features."""
    return len(self.mean)

  @property
  def rank_deficient(self) -> bool:
    """True if the covariance is singular because there are too few examples.

    Established tools then differ by 5e-7 of the distance, for they add up the
    rounding errors of eigenvalues that are zero.
    """
    return self.count <= self.dim

  @property
  def covariance(self) -> np.ndarray:
    """The unbiased covariance [d, d].

    Raises:
      ValueError: there are fewer than 2 examples.
    """
    if self.count < 2:
      raise ValueError(
        f"features of {self.count} examples have no covariance, expected at"
        " least 2"
      )
    return self.scatter / (self.count - 1)


def merge(parts: Sequence[FeatureStats]) -> FeatureStats:
  """Merges the moments of disjoint parts exactly (Chan et al. 1983).

  Raises:
    ValueError: there is no part, or the parts' dimensions differ.
  """
  if not parts:
    raise ValueError("there are no features to merge, expected at least 1 part")
  for part in parts:
    _check_same_dim(parts[0], part)
  counts = np.array([part.count for part in parts])
  means = np.stack([part.mean for part in parts])
  mean, shifts = _centre(counts, means)
  scatter = sum(part.scatter for part in parts)
  return FeatureStats(
    int(counts.sum()), mean, scatter + (shifts.T * counts) @ shifts
  )


def merge_hosts(stats: FeatureStats) -> FeatureStats:
  """Merges the moments of all hosts; all call it, and get equal bits."""
  if jax.process_count() == 1:
    return stats
  counts = _gather(np.array([stats.count], np.int64))[:, 0]
  mean, shifts = _centre(counts, _gather(stats.mean))
  scatter = np.empty_like(stats.scatter)
  # A gathered scatter of many hosts would not fit next to a net.
  rows = max(1, _GATHERED // (8 * stats.dim * len(counts)))
  for start in range(0, stats.dim, rows):
    at = slice(start, start + rows)
    between = (shifts[:, at].T * counts) @ shifts
    scatter[at] = _gather(stats.scatter[at]).sum(0) + between
  return FeatureStats(int(counts.sum()), mean, scatter)


def frechet_distance(first: FeatureStats, second: FeatureStats) -> float:
  """Computes the Frechet distance of two Gaussians (Heusel et al. 2017).

  |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2. The last matrix is
  symmetric, so that eigh finds its root; S1 S2 is not.

  Raises:
    ValueError: the dimensions differ, or a set has fewer than 2 examples.
  """
  _check_same_dim(first, second)
  values, vectors = np.linalg.eigh(first.covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  middle = root @ second.covariance @ root
  squares = np.linalg.eigvalsh((middle + middle.T) / 2)
  # n examples give n - 1 eigenvalues. Further ones are rounding errors of 0,
  # whose roots would add up.
  rank = min(first.count, second.count) - 1
  overlap = np.sqrt(np.maximum(squares[-rank:], 0)).sum()
  shift = first.mean - second.mean
  total = np.trace(first.covariance) + np.trace(second.covariance)
  return float(shift @ shift + total - 2 * overlap)


def _centre(
  counts: np.ndarray, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the common mean [d] and each part's distance from it [n, d]."""
  mean = counts @ means / max(counts.sum(), 1)
  return mean, means - mean


def _gather(array: np.ndarray) -> np.ndarray:
  """Gathers a 64-bit array of each of n hosts: [...] -> [n, ...]."""
  # JAX would cut 64-bit numbers to 32 bits; pairs of 32 bits lose nothing.
  bits = np.ascontiguousarray(array).view(np.uint32)
  found = np.asarray(multihost_utils.process_allgather(bits))
  return np.ascontiguousarray(found).view(array.dtype)


def _check_same_dim(first: FeatureStats, second: FeatureStats) -> None:
  """Raises ValueError if the dimensions of features differ."""
  if first.dim != second.dim:
    raise ValueError(
      f"features have dimensions {first.dim} and {second.dim}, expected those"
      " of one extractor"
    )
