"""Features of images, kept one by one where moments do not suffice."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Holds features of images in the order of the images.

  Attributes:
    rows: float32 [n, d], NaN for an image that is left out.
  """

  rows: np.ndarray

  @classmethod
  def of(
    cls, features: np.ndarray, mask: np.ndarray | None = None
  ) -> "Embeddings":
    """Keeps the features of a batch.

    Args:
      features: [B, d], finite numbers.
      mask: bool [B], False for images that are left out; None keeps all.

    Raises:
      ValueError: features are no matrix or not finite.
    """
    rows = np.array(features, np.float32)
    if rows.ndim != 2:
      raise ValueError(f"features are {list(rows.shape)}, expected [batch, d]")
    kept = np.ones(len(rows), bool) if mask is None else np.asarray(mask, bool)
    bad = np.flatnonzero(kept & ~np.isfinite(rows).all(1))
    if bad.size:
      raise ValueError(
        f"features have NaN or infinity in row {bad[0]}, expected finite"
        " numbers"
      )
    rows[~kept] = np.nan
    return cls(rows)

  @property
  def known(self) -> np.ndarray:
    """The rows of images that are not left out, [count, d]."""
    return self.rows[~np.isnan(self.rows).any(1)]

  @property
  def count(self) -> int:
    """The number of images that are not left out."""
    return len(self.known)


def join(parts: Sequence[Embeddings]) -> Embeddings:
  """Joins the features of images that follow each other."""
  return Embeddings(np.concatenate([part.rows for part in parts]))


def join_hosts(own: Embeddings) -> Embeddings:
  """Joins the features of all hosts; all call it, and get equal bits.

  Of n hosts, host k has those of images k, k + n, k + 2n, ...
  """
  if jax.process_count() == 1:
    return own
  gather = multihost_utils.process_allgather
  counts = np.asarray(gather(np.array(len(own.rows), np.int32)))
  fill = [(0, counts.max() - len(own.rows)), (0, 0)]
  rows = np.asarray(gather(np.pad(own.rows, fill)))  # [hosts, most, d]
  rows = rows.swapaxes(0, 1).reshape(-1, rows.shape[-1])
  return Embeddings(rows[: counts.sum()])
