"""CMMD: the maximum mean discrepancy of images' CLIP embeddings.

Not in the paper. Jayasumana et al. 2024 define it by the image tower of CLIP
ViT-L/14 at 336 pixels. The tower is the caller's.
"""

import numpy as np

from imagen_jax.evals.clip_score import directions

SIGMA = 10.0  # the width of the kernel
SCALE = 1000.0  # by which values are multiplied to be readable
_ROWS = 1024  # of a block of the kernel's matrix


def cmmd(first: np.ndarray, second: np.ndarray) -> float:
  """Computes CMMD of two sets of embeddings.

  It is 1000 MMD^2 with the kernel exp(-|x - y|^2 / (2 * 10^2)) of embeddings of
  length 1. Pairs of an image with itself count, as in the authors' code, so
  that the value is not negative.

  Args:
    first: [N, d], embeddings of images; they are divided by their lengths.
    second: [M, d], embeddings of other images.

  Raises:
    ValueError: the sets are empty or of other dimensions, or an embedding is
      zero or not finite.
  """
  shapes = np.shape(first), np.shape(second)
  valid = all(len(shape) == 2 and shape[0] > 0 for shape in shapes)
  if not valid or shapes[0][1] != shapes[1][1]:
    raise ValueError(
      f"embeddings are {list(shapes[0])} and {list(shapes[1])}, expected"
      " [images, d] with one d"
    )
  x = directions(first, "row {} of the first embeddings is")
  y = directions(second, "row {} of the second embeddings is")
  return SCALE * (_mean(x, x) + _mean(y, y) - 2 * _mean(x, y))


def _mean(x: np.ndarray, y: np.ndarray) -> float:
  """Computes the mean of the kernel over all pairs, block by block.

  Of embeddings of length 1, |x - y|^2 = 2 - 2 x y.
  """
  total = 0.0
  for start in range(0, len(x), _ROWS):
    products = x[start : start + _ROWS] @ y.T
    total += np.exp((products - 1) / SIGMA**2).sum()
  return total / (len(x) * len(y))
