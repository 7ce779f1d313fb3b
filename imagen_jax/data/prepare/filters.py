"""Checks of records: which are kept, and what is stored of them."""

import dataclasses
import hashlib
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from imagen_jax.data import images, png
from imagen_jax.data.prepare.rows import Record

_DIGEST = 16  # bytes: two of 10^9 records collide with probability 1e-21


class Dropped(ValueError):
  """Explains why a record is left out.

  Attributes:
    kind: a word or two that many records share, for counts.
  """

  def __init__(self, kind: str, reason: str):
    super().__init__(reason)
    self.kind = kind


@dataclasses.dataclass(frozen=True)
class Kept:
  """Holds what is stored of a record.

  Attributes:
    image: a JPEG or PNG that every decoder reads alike.
    captions: the alternatives, at least one.
    digest: equal for records of equal pixels and captions.
  """

  image: bytes
  captions: tuple[str, ...]
  digest: str


@dataclasses.dataclass(frozen=True)
class Filters:
  """Describes which records are kept.

  Attributes:
    least_side: the fewest pixels of an image's smaller side.
    most_pixels: the most pixels of an image.
    most_aspect: the largest ratio of the sides; None allows any.
    least_caption: the fewest characters of a caption.
    most_caption: the most characters of a caption; None allows any.
    at_least: the lowest values of columns.
    at_most: the highest values of columns.
  """

  least_side: int = 8
  most_pixels: int = images.MAX_PIXELS
  most_aspect: float | None = None
  least_caption: int = 1
  most_caption: int | None = None
  at_least: Mapping[str, float] = dataclasses.field(default_factory=dict)
  at_most: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name in ("least_side", "least_caption", "most_pixels"):
      least = 8 if name == "least_side" else 1
      if getattr(self, name) < least:
        raise ValueError(
          f"{name} is {getattr(self, name)}, expected at least {least}"
        )
    if self.most_aspect is not None and not self.most_aspect >= 1:
      raise ValueError(f"most_aspect is {self.most_aspect}, expected 1 or more")
    if self.most_caption is not None and (
      self.most_caption < self.least_caption
    ):
      raise ValueError(
        f"most_caption is {self.most_caption}, expected at least least_caption,"
        f" {self.least_caption}"
      )

  def check(self, record: Record) -> Kept:
    """Decodes a record; raises Dropped if it is left out."""
    if record.reason is not None:
      raise Dropped(_source_kind(record.reason), record.reason)
    self._check_columns(record.columns)
    captions = self._check_captions(record.captions)
    pixels = self._check_image(record.image)
    digest = hashlib.sha256(repr((pixels.shape, captions)).encode())
    digest.update(np.ascontiguousarray(pixels))
    stored = _plain(record.image, pixels)
    return Kept(stored, captions, digest.hexdigest()[: 2 * _DIGEST])

  def _check_columns(self, columns: Mapping) -> None:
    """Raises Dropped for a value beyond its threshold, or without a value."""
    for limits, said, sign in (
      (self.at_least, "at least", 1), (self.at_most, "at most", -1),
    ):  # fmt: skip
      for name, limit in limits.items():
        value = _number(columns.get(name))
        if math.isnan(value):
          raise Dropped(
            f"no {name}", f"{name} has no number, expected {said} {limit:g}"
          )
        if sign * value < sign * limit:
          raise Dropped(name, f"{name} is {value:g}, expected {said} {limit:g}")

  def _check_captions(self, captions: Sequence[str]) -> tuple[str, ...]:
    """Returns the captions of a good length; raises Dropped without one."""
    texts = [caption for caption in captions if caption.strip()]
    if not texts:
      raise Dropped("empty caption", "caption is empty")
    try:
      "".join(texts).encode()
    except UnicodeEncodeError as error:  # half of a pair, from JSON
      raise Dropped("bad caption", "caption is not Unicode text") from error
    most = math.inf if self.most_caption is None else self.most_caption
    good = [t for t in texts if self.least_caption <= len(t.strip()) <= most]
    if not good:
      first = len(texts[0].strip())
      expected = f"at least {self.least_caption:,}"
      if first > most:
        expected = f"at most {most:,}"
      raise Dropped(
        "caption length",
        f"caption has {first:,} characters, expected {expected}",
      )
    return tuple(good)

  def _check_image(self, data: bytes) -> np.ndarray:
    """Decodes an image; raises Dropped if it is refused."""
    try:
      if not data:
        raise ValueError("image is an empty file")
      pixels = images.decode(
        data, max_pixels=self.most_pixels, least_side=self.least_side
      )
    except images.TooSmall as error:
      raise Dropped("small image", str(error)) from error
    except ValueError as error:
      raise Dropped("bad image", str(error)) from error
    height, width = pixels.shape[:2]
    aspect = max(height, width) / min(height, width)
    if self.most_aspect is not None and aspect > self.most_aspect:
      raise Dropped(
        "aspect ratio",
        f"image has {width:,} x {height:,} pixels, expected sides within a"
        f" ratio of {self.most_aspect:g}",
      )
    return pixels


def _source_kind(reason: str) -> str:
  """Returns the kind of a reason that a source gives."""
  return reason.split(":")[0] if reason.split(":")[0] in (
    "image without a caption", "caption without an image",
  ) else "not readable"  # fmt: skip


def _number(value: object) -> float:
  """Returns a column's value as a number; NaN if it is none."""
  try:
    return float(value)
  except (OverflowError, TypeError, ValueError):
    return math.nan


def _plain(data: bytes, pixels: np.ndarray) -> bytes:
  """Returns an image file that every decoder reads as these pixels.

  It is the file itself if a decoder without our rules reads it so. Otherwise,
  as with CMYK, transparency, a profile or an orientation, it is a PNG.
  """
  try:
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    if (
      image.mode == "RGB"
      and image.size == pixels.shape[1::-1]
      and getattr(image, "n_frames", 1) == 1
      and np.array_equal(np.asarray(image), pixels)
      and image.getexif().get(0x0112, 1) == 1
    ):
      return data
  except Exception:  # PIL raises errors of any type
    pass
  return png.encode_png(pixels)
