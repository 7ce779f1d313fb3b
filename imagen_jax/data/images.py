"""Pictures as arrays: decoding, ranges, antialiased resizing, crops."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

# Not EPS above all, for which PIL would run Ghostscript on the record.
_FORMATS = (
  "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF",
)  # fmt: skip
# PIL refuses pictures over 179 million pixels before it decodes them, which
# stays. It warns of large ones, which we decode, and of damage; programs ignore
# that, see cli/program.py: threads decode, and the filters are the process's.
# What makes a picture upright, by its EXIF orientation.
_ORIENTATION = 0x0112
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_LARGE = 2**22  # pixels from which on `decode` shrinks by itself


def decode(image: bytes | np.ndarray, size: int | None = None) -> np.ndarray:
  """An encoded (PNG, JPEG, ...) or plain picture as uint8 [H, W, 3].

  Of an animation the first frame, upright as EXIF says; transparency lies on
  white and 16-bit grey is scaled to 8. A plain one is uint8 [H, W] or
  [H, W, 1, 3 or 4]. If a picture is to be resized to `size`, a JPEG and what
  has millions of pixels come out shrunk by a whole factor, but not below
  3 * size, so that huge ones are cheap. Anything that is not a readable
  picture raises ValueError.
  """
  if isinstance(image, np.ndarray):
    return _from_array(image)
  if not isinstance(image, bytes):
    kind = type(image).__name__
    raise ValueError(f"image is {kind}, expected bytes or an array")
  try:
    return np.asarray(_from_bytes(image, size))
  except UnidentifiedImageError as error:
    raise ValueError(
      "image bytes cannot be decoded (of no known format)"
    ) from error
  except Exception as error:  # damage makes PIL raise errors of any type
    reason = str(error) or type(error).__name__
    raise ValueError(f"image bytes cannot be decoded ({reason})") from error


def _from_bytes(data: bytes, size: int | None) -> Image.Image:
  picture = Image.open(io.BytesIO(data), formats=_FORMATS)
  if size:
    # Only JPEG's decoder can: by 2, 4 or 8, and much faster for it.
    picture.draft(None, (3 * size, 3 * size))
  picture.load()
  # Asked after loading, when PIL has turned a TIFF by itself.
  upright = _UPRIGHT.get(picture.getexif().get(_ORIENTATION))
  picture = _to_rgb(picture)
  if size and picture.width * picture.height > _LARGE:
    picture = picture.reduce(max(1, min(picture.size) // (3 * size)))
  return picture if upright is None else picture.transpose(upright)


def _from_array(image: np.ndarray) -> np.ndarray:
  channels = image.shape[2:]
  if (
    image.dtype != np.uint8
    or image.ndim < 2
    or channels not in ((), (1,), (3,), (4,))
  ):
    raise ValueError(
      "image must be uint8 [H, W] or [H, W, 1, 3 or 4],"
      f" got {image.dtype} {image.shape}"
    )
  if channels == (3,):
    return image
  if channels == (1,):
    image = image[..., 0]
  return np.asarray(_to_rgb(Image.fromarray(image)))


def _to_rgb(picture: Image.Image) -> Image.Image:
  if picture.mode == "F":
    raise ValueError("pixels are floats of unknown range")
  if picture.mode.startswith("I"):  # PIL itself would clip it to 8 bits
    wide = np.asarray(picture)
    if wide.min() < 0 or wide.max() >= 2**16:
      raise ValueError("grey of more than 16 bits")
    wide = (wide.astype(np.uint32) + 128) // 257  # rounded
    picture = Image.fromarray(wide.astype(np.uint8))
  if picture.has_transparency_data:
    # What lies under full transparency is arbitrary, often black.
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture)
  return picture.convert("RGB")


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
