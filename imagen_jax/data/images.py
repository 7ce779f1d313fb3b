"""Pictures as arrays: decoding, ranges, antialiased resizing, crops."""

import io

import numpy as np
from PIL import Image


def decode(image: bytes | np.ndarray) -> np.ndarray:
  """An encoded (PNG, JPEG, ...) or plain picture as uint8 [H, W, 3].

  Anything that is not a readable picture raises ValueError.
  """
  if isinstance(image, bytes):
    try:
      image = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
      raise ValueError(f"image bytes cannot be decoded ({error})") from error
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise ValueError(
      f"image must be uint8 [H, W, 3], got {image.dtype} {image.shape}"
    )
  return image


def to_float(image: np.ndarray) -> np.ndarray:
  """uint8 0..255 -> float32 [-1, 1]: x = image / 127.5 - 1."""
  return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x: np.ndarray) -> np.ndarray:
  """float [-1, 1], clipped -> uint8 0..255: the inverse of `to_float`."""
  return np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def resize(x: np.ndarray, size: int) -> np.ndarray:
  """float32 [H, W, C] in [-1, 1] -> [size, size, C], antialiased.

  Cubic convolution (Keys, a = -1/2), stretched by the factor when shrinking.
  Its overshoot at edges is clipped to [-1, 1].
  """
  if x.shape[:2] == (size, size):
    return x
  y = np.empty((size, size, x.shape[2]), np.float32)
  for c in range(x.shape[2]):
    channel = Image.fromarray(np.ascontiguousarray(x[..., c]))
    y[..., c] = channel.resize((size, size), Image.Resampling.BICUBIC)
  return np.clip(y, -1, 1, out=y)


def central_square(image: np.ndarray) -> np.ndarray:
  """The largest square at the centre of a picture [H, W, C]."""
  side = min(image.shape[:2])
  top, left = ((n - side) // 2 for n in image.shape[:2])
  return image[top : top + side, left : left + side]


def random_crop(
  image: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
  """A square window of a picture [H, W, C], every position equally likely."""
  top, left = (rng.integers(n - size + 1) for n in image.shape[:2])
  return image[top : top + size, left : left + size]
