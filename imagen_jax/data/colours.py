"""Conversion of decoded images to 8-bit sRGB on a white background."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from imagen_jax.data import encoded

# A profile that changes no level by more than this is treated as sRGB. Several
# makers ship their own sRGB profile, each rounded differently.
_SAME = 2
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def eight_bits(
  image: Image.Image,
  low: Image.Image | None,
  still: encoded.Still,
  top: int,
  bottom: int,
) -> Image.Image:
  """Converts rows of an image to 8 bits, and its transparent colour to alpha.

  Args:
    image: the image as PIL decoded it.
    low: the lower 8 bits of 16-bit colours; `image` holds the higher 8.
      None for all other images.
    still: the sample format that the file declares.
    top: the first row.
    bottom: the row after the last.

  Raises:
    ValueError: the range of the samples is unknown.
  """
  if image.mode == "F":
    raise ValueError("pixels are floats of unknown range")
  box = (0, top, image.width, bottom)
  image = image if box[3] - top == image.height else image.crop(box)
  if still.wide == "LA":
    values = _wide(np.asarray(image)[..., ::2], np.asarray(image)[..., 1::2])
  elif low is not None:
    values = _wide(np.asarray(image), np.asarray(low.crop(box)))
  elif image.mode.startswith("I"):  # PIL itself would clip it to 8 bits
    values = _grey(image, still)
  elif still.key is None:
    return image
  else:
    one_bit = image.mode == "1"
    values = np.asarray(image.convert("L") if one_bit else image)
  eight = values if values.dtype == np.uint8 else _rounded(values)
  if still.key is not None:
    values = values.reshape(*values.shape[:2], -1)
    hidden = (values == np.array(still.key)).all(-1, keepdims=True)
    eight = eight.reshape(*values.shape)
    eight = np.concatenate(
      [eight, np.where(hidden, np.uint8(0), np.uint8(255))], -1
    )
  return Image.fromarray(eight)


def _wide(high: np.ndarray, low: np.ndarray) -> np.ndarray:
  """Joins high and low bytes to 16-bit numbers."""
  return high.astype(np.uint16) << 8 | low


def _grey(image: Image.Image, still: encoded.Still) -> np.ndarray:
  """Returns grey values as uint16, scaled to its full range."""
  wide = np.asarray(image)
  if wide.min() < 0 or wide.max() >= 2**16:
    raise ValueError("grey of more than 16 bits")
  wide = wide.astype(np.uint16)
  if still.bits == 12:
    wide = wide << 4 | wide >> 8
  return 65535 - wide if still.inverted else wide


def _rounded(values: np.ndarray) -> np.ndarray:
  """Rounds uint16 in 0..65535 to uint8 in 0..255."""
  return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
  """Converts an 8-bit image to RGB, with transparency blended onto white.

  Args:
    image: an image in any PIL mode of 8 bits or less.
    profile: its ICC profile. A profile that is malformed, or made for another
      colour space, is ignored.
  """
  if not image.has_transparency_data:
    return _to_srgb(image, profile)
  grey = image.mode == "LA"
  whole = image.convert("RGBA")
  opaque = image.convert("L") if grey else whole.convert("RGB")
  colours = _to_srgb(opaque, profile)
  colours.putalpha(whole.getchannel("A"))
  # Colours under full transparency are arbitrary, often black.
  white = Image.new("RGBA", image.size, "white")
  return Image.alpha_composite(white, colours).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
  """Converts an opaque image to sRGB by its ICC profile."""
  if image.mode in ("1", "P", "YCbCr"):
    image = image.convert("L" if image.mode == "1" else "RGB")
  transform = profile and _transform(profile, image.mode)
  if not transform:
    return image.convert("RGB")
  return ImageCms.applyTransform(image, transform)


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
  """Builds the transform from a profile's colours to sRGB.

  Returns:
    The transform. None if the profile is sRGB already, is malformed or is made
    for another mode.
  """
  try:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if _SPACES.get(opened.profile.xcolor_space.strip()) != mode:
      return None
    transform = ImageCms.buildTransform(
      opened,
      ImageCms.createProfile("sRGB"),
      mode,
      "RGB",
      # White stays white, and black becomes black.
      ImageCms.Intent.RELATIVE_COLORIMETRIC,
      ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode == "CMYK":
      return transform
    grid = _grid(mode)
    changed = np.asarray(ImageCms.applyTransform(grid, transform)).astype(int)
  except Exception:  # damage makes PIL raise errors of any type
    return None
  same = np.abs(changed - np.asarray(grid.convert("RGB"))).max() <= _SAME
  return None if same else transform


def _grid(mode: str) -> Image.Image:
  """Returns an image with colours from all of a mode's range."""
  if mode == "L":
    return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
  levels = np.arange(0, 256, 15, dtype=np.uint8)  # with both ends
  cube = np.stack(np.meshgrid(levels, levels, levels), -1)
  return Image.fromarray(cube.reshape(len(levels), -1, 3))
