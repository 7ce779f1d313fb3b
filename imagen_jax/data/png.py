"""PNG files with metadata, and image grids and captions to look at."""

import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from imagen_jax import files


def write_png(
  path: str | os.PathLike,
  image: np.ndarray,
  text: Mapping[str, str] | None = None,
) -> None:
  """Writes an image as a PNG, atomically.

  Args:
    path: a local or gs:// path. Missing folders are created.
    image: uint8 [H, W, 3].
    text: the metadata, by keyword.

  Raises:
    ValueError: the file cannot be written.
  """
  files.write(path, encode_png(image, text), parents=True)


def encode_png(
  image: np.ndarray, text: Mapping[str, str] | None = None
) -> bytes:
  """Encodes uint8 [H, W, 3] as a PNG with `text` as its metadata."""
  info = PngImagePlugin.PngInfo()
  for key, value in (text or {}).items():
    info.add_itxt(key, value)
  data = io.BytesIO()
  Image.fromarray(image).save(data, format="PNG", pnginfo=info)
  return data.getvalue()


def upsample(image: np.ndarray, size: int) -> np.ndarray:
  """Upsamples uint8 [H, W, 3] to [size, size, 3] by nearest neighbour."""
  resized = Image.fromarray(image).resize(
    (size, size), Image.Resampling.NEAREST
  )
  return np.asarray(resized)


def captioned(image: np.ndarray, text: str) -> np.ndarray:
  """Adds a white strip with the text below an image uint8 [H, W, 3].

  The text is broken into lines, and cut after the third.
  """
  font = ImageFont.load_default(size=11)
  width = image.shape[1]
  lines, rest = [], text.split()
  while rest and len(lines) < 3:
    count = len(rest)
    while count > 1 and font.getlength(" ".join(rest[:count])) > width - 4:
      count -= 1
    lines.append(" ".join(rest[:count]))
    rest = rest[count:]
  if rest:
    lines[-1] += " ..."
  strip = Image.new("RGB", (width, 3 * 13 + 4), "white")
  ImageDraw.Draw(strip).multiline_text(
    (2, 1), "\n".join(lines), fill="black", font=font, spacing=1
  )
  return np.concatenate([image, np.asarray(strip)])


def grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
  """Arranges equally sized uint8 [H, W, 3] row by row, with thin grey gaps."""
  height, width, _ = images[0].shape
  rows = -(-len(images) // columns)
  gap = 2
  shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
  sheet = np.full(shape, 128, np.uint8)
  for i, image in enumerate(images):
    y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
    sheet[y : y + height, x : x + width] = image
  return sheet
