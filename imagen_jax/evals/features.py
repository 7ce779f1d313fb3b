"""Features of images, by which distributions of images are compared."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from imagen_jax.nets.inception import InceptionV3
from imagen_jax.parallel import compiler

INCEPTION_SIZE = 299  # pixels
PIXEL_SIZE = 16  # pixels, of pixel_features
FID_TAP = "2048"  # the tap of InceptionV3 by which FID is defined


@dataclasses.dataclass(frozen=True)
class Extractor:
  """Holds a kind of features.

  Attributes:
    name: identifies the features: values of two names do not compare.
    compute: maps images uint8 [B, H, W, 3] to features [B, d].
  """

  name: str
  compute: Callable[[np.ndarray], Any]


def resize_tf1(images: np.ndarray, size: int = INCEPTION_SIZE) -> jax.Array:
  """Resizes images bilinearly as TensorFlow 1 does, as FID is defined.

  Output pixel i is at i * scale of the input: not at its centre. Nothing is
  filtered when images are downsampled.

  Args:
    images: uint8 [B, H, W, 3].
    size: of the output, in pixels.

  Returns:
    float32 [B, size, size, 3] in 0..255.
  """
  x = jnp.asarray(images, jnp.float32)
  for axis in (2, 1):  # the order of TensorFlow's float32 operations
    low, high, share = _tf1_positions(x.shape[axis], size)
    share = share.reshape((size,) + (1,) * (3 - axis))
    below, above = jnp.take(x, low, axis), jnp.take(x, high, axis)
    x = below + (above - below) * share
  return x


def resize_clean(images: np.ndarray, size: int = INCEPTION_SIZE) -> np.ndarray:
  """Resizes images by PIL's antialiased bicubic filter, not rounded to 8 bits.

  Not in the paper: clean-fid's definition (Parmar et al. 2022), whose values
  differ from FID's. Overshoots beyond 0..255 stay.

  Args:
    images: uint8 [B, H, W, 3].
    size: of the output, in pixels.

  Returns:
    float32 [B, size, size, 3].
  """
  return _by_pil(images, size, Image.Resampling.BICUBIC)


# The resize is part of a score's name: scores of two resizes do not compare.
RESIZES: Mapping[str, Callable[[np.ndarray], Any]] = {
  "tf1": resize_tf1,
  "clean": resize_clean,
}


def inception_features(
  params: Any, images: np.ndarray, resize: str = "tf1"
) -> dict[str, jax.Array]:
  """Computes Inception's features of images.

  Args:
    params: of InceptionV3, from interop.inception.load.
    images: uint8 [B, H, W, 3].
    resize: "tf1", FID's own, or "clean".

  Returns:
    Features by tap, as of InceptionV3; FID is of tap "2048".

  Raises:
    ValueError: images are not uint8, or resize has another name.
  """
  check_images(images)
  if resize not in RESIZES:
    known = ", ".join(map(repr, RESIZES))
    raise ValueError(f"resize is {resize!r}, expected one of {known}")
  return _inception(params, RESIZES[resize](images))


def pixel_features(images: np.ndarray) -> np.ndarray:
  """Averages images to 16x16 pixels: features [B, 768] in [-1, 1].

  Not in the paper: Inception knows photographs. For drawings, the Frechet
  distance of these features needs no weights and compares layout and colour.

  Args:
    images: uint8 [B, H, W, 3], of 16x16 pixels at least.

  Raises:
    ValueError: images are not uint8, or smaller.
  """
  check_images(images)
  if min(images.shape[1:3]) < PIXEL_SIZE:
    height, width = images.shape[1:3]
    raise ValueError(
      f"images are {width}x{height}, expected {PIXEL_SIZE}x{PIXEL_SIZE} or more"
    )
  small = _by_pil(images, PIXEL_SIZE, Image.Resampling.BOX)
  return small.reshape(len(images), -1) / 127.5 - 1


PIXELS = Extractor(f"pixels{PIXEL_SIZE}", pixel_features)


def inception_extractor(params: Any, digest: str, resize: str) -> Extractor:
  """Returns FID's features, computed on all devices of this process.

  Args:
    params: of InceptionV3, from interop.inception.load.
    digest: identifies the weights.
    resize: "tf1" or "clean", as for inception_features.
  """
  replicated, rows = local_shardings()
  params = jax.device_put(params, replicated)

  def compute(images: np.ndarray) -> np.ndarray:
    check_images(images)
    resized = RESIZES[resize](fill_rows(images, rows.mesh.size))
    taps = _inception(params, jax.device_put(resized, rows))
    return np.asarray(taps[FID_TAP])[: len(images)]

  return Extractor(f"inception {digest} {resize}", compute)


def local_shardings() -> tuple[NamedSharding, NamedSharding]:
  """Returns shardings over this process's devices: replicated, and by rows."""
  devices = Mesh(np.array(jax.local_devices()), ("rows",))
  return NamedSharding(devices, P()), NamedSharding(devices, P("rows"))


def fill_rows(array: np.ndarray, multiple: int) -> np.ndarray:
  """Repeats the last row until `multiple` divides the number of rows."""
  fill = np.repeat(array[-1:], -len(array) % multiple, axis=0)
  return np.concatenate([array, fill])


@compiler.jit
def _inception(params: Any, resized: jax.Array) -> dict[str, jax.Array]:
  """Applies the net to images [B, 299, 299, 3] in 0..255."""
  return InceptionV3().apply({"params": params}, (resized - 128) / 128)


@functools.lru_cache
def _tf1_positions(
  old: int, new: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the two input pixels of each output pixel and the second's share.

  All is in float32 as in TensorFlow: float64 rounds some positions down.
  """
  at = np.arange(new, dtype=np.float32) * np.float32(old / new)
  low = at.astype(np.int32)
  return low, np.minimum(low + 1, old - 1), at - low.astype(np.float32)


def _by_pil(
  images: np.ndarray, size: int, method: Image.Resampling
) -> np.ndarray:
  """Resizes each channel in float32: [B, H, W, C] -> [B, size, size, C]."""
  x = np.asarray(images, np.float32)
  out = np.empty((len(x), size, size, x.shape[-1]), np.float32)
  for i, c in np.ndindex(len(x), x.shape[-1]):
    channel = Image.fromarray(np.ascontiguousarray(x[i, ..., c]))
    out[i, ..., c] = channel.resize((size, size), method)
  return out


def check_images(images: np.ndarray) -> None:
  """Raises ValueError for other than uint8 [B, H, W, 3]."""
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
      f"images are {images.dtype} {list(images.shape)}, expected uint8 [batch,"
      " height, width, 3]"
    )
