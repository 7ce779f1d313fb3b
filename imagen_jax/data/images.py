"""Images as arrays: decoding, value ranges, antialiased resizing and crops."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from imagen_jax.data import colours, encoded, jpeg

# Above all without EPS, for which PIL would run Ghostscript on the record.
_FORMATS = (
  "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF",
)  # fmt: skip
# The most pixels to decode, 8192 x 8192, which take 270 MB in PIL. For a JPEG
# the pixels are counted after its decoder has downsampled it.
MAX_PIXELS = 2**26
# PIL warns of images with half as many pixels, and of damaged images. Both are
# handled here, so cli/program.py filters these warnings: several threads
# decode, and warning filters belong to the process.
PIL_MAX_PIXELS = 178_956_970  # PIL's own limit, for all of the process
# The transposition that makes an image upright, by its EXIF orientation.
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_LARGE = 2**22  # pixels above which `decode` downsamples by itself


class TooSmall(ValueError):
  """States that an image is smaller than the caller can use."""


def decode(
  image: bytes | np.ndarray | Image.Image,
  size: int | None = None,
  *,
  max_pixels: int = MAX_PIXELS,
  least_side: int = 0,
) -> np.ndarray:
  """Decodes an image to 8-bit sRGB.

  Only the first frame of an animation is decoded. The image is turned upright
  by its EXIF or XMP orientation. Transparency is blended onto white, 16 bits
  are scaled to 8, and an ICC profile is applied. Malformed metadata is ignored.

  Args:
    image: the bytes of a PNG, JPEG, ...; uint8 [H, W] or [H, W, 1, 3 or 4]; or
      a PIL image, which is taken to be upright.
    size: the resolution that the image will be resized to. It makes huge images
      cheap: a JPEG, or an image of more than 2^22 pixels, is downsampled by an
      integer factor, but not below 3 * size.
    max_pixels: the most pixels to decode. The header is checked first.
    least_side: the fewest pixels of the image's smaller side. The header is
      checked, and a smaller image is not decoded.

  Returns:
    uint8 [H, W, 3].

  Raises:
    TooSmall: a side has fewer than least_side pixels.
    ValueError: the image cannot be decoded, or is too large.
  """
  if isinstance(image, np.ndarray):
    if image.ndim > 1:
      _check_least(image.shape[1], image.shape[0], least_side)
    return _from_array(image)
  if isinstance(image, Image.Image):
    return np.asarray(_to_rgb(image, encoded.Still(b"")))
  if not isinstance(image, bytes):
    kind = type(image).__name__
    raise ValueError(f"image is {kind}, expected bytes or an array")
  try:
    return np.asarray(_from_bytes(image, size, max_pixels, least_side))
  except TooSmall:
    raise
  except UnidentifiedImageError as error:
    raise ValueError(
      "image bytes cannot be decoded (of no known format)"
    ) from error
  except Exception as error:  # damage makes PIL raise errors of any type
    reason = str(error) or type(error).__name__
    raise ValueError(f"image bytes cannot be decoded ({reason})") from error


def _check_least(width: int, height: int, least_side: int) -> None:
  """Raises TooSmall if a side has fewer than least_side pixels."""
  if min(width, height) < least_side:
    raise TooSmall(
      f"image has {width:,} x {height:,} pixels, expected at least"
      f" {least_side:,} on each side"
    )


def _from_bytes(
  data: bytes, size: int | None, max_pixels: int, least_side: int
) -> Image.Image:
  """Decodes the bytes of an image to RGB, upright."""

  def check_size(width: int, height: int) -> None:
    """Raises ValueError for more than max_pixels."""
    if width * height > max_pixels:
      raise ValueError(
        f"{width:,} x {height:,} pixels, expected at most max_pixels,"
        f" {max_pixels:,}"
      )

  still = encoded.read_still(data, check_size)
  if least_side:
    # Opening reads the header only.
    sides = Image.open(io.BytesIO(still.data), formats=_FORMATS).size
    _check_least(*(still.canvas[0] if still.canvas else sides), least_side)
  image = _load(still, size, check_size)
  low = None
  if still.wide in ("RGB", "RGBA"):
    low = _load(still, size, check_size, f"{still.wide};16L")
  orientation = still.orientation
  if orientation is None:
    # Read after loading, when PIL has already turned a TIFF upright.
    orientation = _orientation(image)
  factor = 1
  if size and image.width * image.height > _LARGE:
    factor = max(1, min(image.size) // (3 * size))
  small = _to_rgb(image, still, low, factor)
  upright = _UPRIGHT.get(orientation)
  return small if upright is None else small.transpose(upright)


def _load(
  still: encoded.Still,
  size: int | None,
  check_size: Callable[[int, int], None],
  raw: str | None = None,
) -> Image.Image:
  """Decodes an image in PIL's own mode, or in another raw mode of PIL."""
  try:
    return _load_file(still.data, size, check_size, raw, still.canvas)
  except OSError:
    if not still.data.startswith(b"\xff\xd8"):
      raise
    # A JPEG may lack only its end. Then bits appended to it change no pixel.
    ends = [_load_file(data, size, check_size) for data in jpeg.end(still.data)]
    if not ends or any(end.tobytes() != ends[0].tobytes() for end in ends):
      raise
    return ends[0]


def _load_file(
  data: bytes,
  size: int | None,
  check_size: Callable[[int, int], None],
  raw: str | None = None,
  canvas: encoded.Canvas | None = None,
) -> Image.Image:
  """Decodes a file, and pastes the image onto its canvas if it has one."""
  image = Image.open(io.BytesIO(data), formats=_FORMATS)
  if image.format == "JPEG" and image.info.get("progressive"):
    check_size(*image.size)  # the decoder keeps all coefficients
  if size:
    # Only the JPEG decoder downsamples: by 2, 4 or 8, and much faster for it.
    image.draft(None, (3 * size, 3 * size))
  check_size(*image.size)
  if raw:
    image.tile = [tile._replace(args=raw) for tile in image.tile]
  image.load()
  if canvas and (image.size, (0, 0)) != canvas:
    whole = Image.new("RGBA", canvas[0])
    whole.paste(image.convert("RGBA"), canvas[1])
    return whole
  return image


def _orientation(image: Image.Image) -> int | None:
  """Returns an image's orientation by EXIF; None if EXIF cannot be read."""
  try:
    return encoded.read_orientation(image.getexif())
  except Exception:  # damage makes PIL raise errors of any type
    return None


def _to_rgb(
  image: Image.Image,
  still: encoded.Still,
  low: Image.Image | None = None,
  factor: int = 1,
) -> Image.Image:
  """Converts an image to RGB, and downsamples it by an integer factor.

  A large image is converted some rows at a time, so that intermediate results
  take little memory.
  """
  (width, height), profile = image.size, still.profile
  profile = profile or image.info.get("icc_profile")

  def rows(top: int, bottom: int) -> Image.Image:
    part = colours.eight_bits(image, low, still, top, bottom)
    return colours.to_rgb(part, profile)

  if width * height <= _LARGE:
    return rows(0, height)
  small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
  step = factor * max(1, _LARGE // (width * factor))
  for top in range(0, height, step):
    part = rows(top, min(top + step, height))
    part = part if factor == 1 else part.reduce(factor)
    small.paste(part, (0, top // factor))
  return small


def _from_array(image: np.ndarray) -> np.ndarray:
  """Converts uint8 [H, W] or [H, W, 1, 3 or 4] to RGB [H, W, 3]."""
  channels = image.shape[2:]
  if (
    image.dtype != np.uint8
    or image.ndim < 2
    or channels not in ((), (1,), (3,), (4,))
  ):
    raise ValueError(
      f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W] or"
      " [H, W, 1, 3 or 4]"
    )
  if channels == (3,):
    return image
  if channels == (1,):
    image = image[..., 0]
  return np.asarray(colours.to_rgb(Image.fromarray(image), None))


def to_float(image: np.ndarray) -> np.ndarray:
  """Converts uint8 in 0..255 to float32 in [-1, 1]: x = image / 127.5 - 1."""
  return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x: np.ndarray) -> np.ndarray:
  """Clips x to [-1, 1] and inverts `to_float`: returns uint8 in 0..255."""
  return np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def resize(x: np.ndarray, size: int) -> np.ndarray:
  """Resizes float32 [H, W, C] in [-1, 1] to [size, size, C], antialiased.

  The filter is cubic convolution (Keys, a = -1/2). It is stretched by the
  factor when downsampling. Its overshoot at edges is clipped to [-1, 1].
  """
  if x.shape[:2] == (size, size):
    return x
  y = np.empty((size, size, x.shape[2]), np.float32)
  for c in range(x.shape[2]):
    channel = Image.fromarray(np.ascontiguousarray(x[..., c]))
    y[..., c] = channel.resize((size, size), Image.Resampling.BICUBIC)
  return np.clip(y, -1, 1, out=y)


def resize_bytes(image: np.ndarray, size: int) -> np.ndarray:
  """Resizes uint8 [H, W, 3] to [size, size, 3] as `resize` does.

  The result is that of resizing floats, to within the last bit of float32. The
  pixels are converted to floats once, a channel at a time. In 8 bits PIL would
  be faster still, but would round between its two passes, which changes every
  seventh pixel by one level.
  """
  if image.shape[:2] == (size, size):
    return image
  result = np.empty((size, size, 3), np.uint8)
  for c, channel in enumerate(Image.fromarray(image).split()):
    small = channel.convert("F").resize((size, size), Image.Resampling.BICUBIC)
    result[..., c] = np.rint(np.clip(np.asarray(small), 0, 255))
  return result


def central_square(image: np.ndarray) -> np.ndarray:
  """Crops an image [H, W, C] to the largest square at its centre."""
  side = min(image.shape[:2])
  top, left = ((n - side) // 2 for n in image.shape[:2])
  return image[top : top + side, left : left + side]


def random_crop(
  image: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
  """Crops an image [H, W, C] to [size, size, C] at a uniform position."""
  top, left = (rng.integers(n - size + 1) for n in image.shape[:2])
  return image[top : top + size, left : left + size]
