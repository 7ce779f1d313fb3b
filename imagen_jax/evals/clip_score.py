"""CLIP score: how well images match their captions, by image and text features.

The towers that compute the features are the caller's.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClipScore:
  """Holds the score of images and what to compare it with.

  Attributes:
    score: the mean raw cosine of images and their own captions, in [-1, 1].
    standard_error: of the score, over images.
    shuffled: the mean cosine of images and other images' captions: the score of
      a model that ignores its captions.
    count: number of images.
  """

  score: float
  standard_error: float
  shuffled: float
  count: int


def clip_score(
  image_features: np.ndarray, text_features: np.ndarray
) -> ClipScore:
  """Computes the mean raw cosine of images and captions.

  Not in the paper, which does not define its score: no factor, no maximum with
  0 and no prefix of captions. `shuffled` is the mean over all pairs of an image
  and another image's caption, so no random order is needed.

  Args:
    image_features: [N, d], of images; N is at least 2.
    text_features: [N, d], of their captions, in the same order.

  Raises:
    ValueError: shapes differ, there are fewer than 2 rows, or a row is zero or
      not finite.
  """
  shape = np.shape(image_features)
  if shape != np.shape(text_features) or len(shape) != 2 or shape[0] < 2:
    raise ValueError(
      f"image features are {list(shape)} and text features"
      f" {list(np.shape(text_features))}, expected both [images, d] with 2"
      " images or more"
    )
  images = directions(image_features, "image features of row {} are")
  texts = directions(text_features, "text features of row {} are")
  own, count = np.sum(images * texts, axis=1), len(images)
  # The sum over all pairs is that of the sums: no matrix of N x N is needed.
  others = images.sum(0) @ texts.sum(0) - own.sum()
  return ClipScore(
    score=float(own.mean()),
    standard_error=float(own.std(ddof=1) / np.sqrt(count)),
    shuffled=float(others / (count * (count - 1))),
    count=count,
  )


def directions(features: np.ndarray, bad_row: str) -> np.ndarray:
  """Divides rows by their lengths, in float64.

  Args:
    features: [n, d].
    bad_row: how an error's sentence begins, with {} for the row's number.

  Raises:
    ValueError: a row is zero or not finite.
  """
  x = np.asarray(features, np.float64)
  length = np.linalg.norm(x, axis=1, keepdims=True)
  bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
  if bad.size:
    raise ValueError(
      f"{bad_row.format(bad[0])} zero or not finite, expected a direction"
    )
  return x / length
