"""A source's records as training examples, and counts of those that are not.

A bad record is replaced by another one. One whose image is too small is None.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from imagen_jax import files
from imagen_jax.data import images
from imagen_jax.data.captions import captions_of, names_side
from imagen_jax.data.feed import Stopped

Example = dict[str, np.ndarray]
Tokenize = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]

_LEAST_SIDE = 8  # pixels: smaller images are not worth learning from
_LONGEST_REASON = 240  # characters of the reason why a record is bad
_MOST_CACHED = 10**8  # examples of a source; an endless one would fill memory
# The records to read before the shares of bad and of small ones are checked,
# and the most records to try in place of one.
ENOUGH = 1000


class BadRecords:
  """Counts the records that this host reads, and the bad ones among them.

  A record is bad if it cannot be used. One whose image is smaller than
  least_side is no bad record, and is counted apart. Each is counted every time
  it is read. Several threads may add records at once.

  Args:
    max_share: the largest share of bad records to accept, 0 to 1.

  Attributes:
    read: the number of records read.
    count: the number of bad records.
    reasons: the first three reasons, each naming its record.
    small: the number of records whose images are too small.
  """

  def __init__(self, max_share: float):
    self.read = 0
    self.count = 0
    self.small = 0
    self.reasons: list[str] = []
    self._max_share = max_share
    self._lock = threading.Lock()

  def add(self, reason: str | None, total: int) -> None:
    """Counts a record.

    Args:
      reason: the reason why the record is bad; None for a good one.
      total: the number of records in the source.

    Raises:
      ValueError: more than max_share of the records read are bad, and at least
        1000 records, or `total` if that is fewer, were read.
    """
    with self._lock:
      self.read += 1
      if reason is not None:
        self.count += 1
        if len(self.reasons) < 3:
          self.reasons.append(reason)
      enough = self.read >= min(total, ENOUGH)
      if enough and self.count > self._max_share * self.read:
        raise ValueError(
          f"{bad_sentence(self.count, self.read, ())}, more than the"
          f" {self._max_share:.3g} that max_bad_share allows; the first is"
          f" {self.reasons[0]}"
        )

  def add_small(self, reason: str, total: int, max_share: float) -> None:
    """Counts a record whose image is too small.

    Args:
      reason: the sizes of the image and of least_side, with the record.
      total: the number of records in the source.
      max_share: the largest share of such records to accept, 0 to 1.

    Raises:
      ValueError: the share is larger, among as many records as for `add`.
    """
    with self._lock:
      self.read += 1
      self.small += 1
      enough = self.read >= min(total, ENOUGH)
      if enough and self.small > max_share * self.read:
        raise ValueError(
          f"{small_sentence(self.small, self.read)}, more than the"
          f" {max_share:.3g} that max_small_share allows: prepare a data set"
          f" without them, or lower least_side; the last is {reason}"
        )


def small_sentence(small: int, read: int) -> str:
  """Formats counts of records whose images are too small."""
  return (
    f"{small:,} of {read:,} records read have images smaller than least_side,"
    f" a share of {small / max(1, read):.3g}"
  )


def bad_sentence(count: int, read: int, reasons: Iterable[str]) -> str:
  """Formats counts of one host or of all hosts, with up to three reasons."""
  named = "; ".join([reason for reason in reasons if reason][:3])
  return (
    f"{count:,} of {read:,} records read are bad, a share of"
    f" {count / max(1, read):.3g}" + (f", such as {named}" if named else "")
  )


class Slots(contextlib.AbstractContextManager):
  """Lets at most `count` threads be in a with-block, and none once closed."""

  def __init__(self, count: int):
    self._free = threading.Semaphore(count)
    self._closed = False

  def __enter__(self) -> None:
    self._free.acquire()
    if self._closed:
      self._free.release()
      raise Stopped

  def __exit__(self, *error: object) -> None:
    self._free.release()

  def close(self) -> None:
    """Raises Stopped in threads that wait for a place, and in later ones."""
    self._closed = True


class Examples(Sequence):
  """Holds a source's records, with resized images and tokenized captions.

  Element i is dict(image=uint8 [size, size, 3], tokens=int32 [k, L], mask=bool
  [k, L]), where k is the number of the record's captions. Images have 8 bits,
  as if the dataset had been stored at this size. The element is None if the
  image is too small.

  Args:
    source: the records.
    size: the resolution of the images in pixels.
    name: names the source among several, in messages.
    tokenize: turns captions into tokens and mask. With None, captions are not
      read and an element has only its image.
    flip: adds may_flip=bool [k] to elements: false for captions that a mirrored
      image would belie. It is bool [] if captions are not read.
    cache: keeps every element in memory from its first use on. An element takes
      size * size * 3 bytes and its tokens: 20,000 images take 15 MB at 16
      pixels, 250 MB at 64 and 3.9 GB at 256.
    bad: counts bad records. Each is replaced by another record, always the same
      one. With None, a bad record raises ValueError.
    max_pixels: the most pixels of an image to decode; a larger one is bad.
    least_side: an image of which a side has fewer pixels is too small. Its
      header decides, so that it is not decoded.
    max_small_share: the largest share of such images to accept, if `bad` counts
      them.
    reading: is entered to read a record.
    decoding: is entered to decode one.
  """

  def __init__(
    self,
    source: Sequence[Mapping],
    size: int,
    *,
    name: str = "",
    tokenize: Tokenize | None,
    flip: bool = False,
    cache: bool,
    bad: BadRecords | None,
    max_pixels: int = images.MAX_PIXELS,
    least_side: int = 0,
    max_small_share: float = 1.0,
    reading: contextlib.AbstractContextManager = contextlib.nullcontext(),
    decoding: contextlib.AbstractContextManager = contextlib.nullcontext(),
  ):
    if cache and len(source) > _MOST_CACHED:
      raise ValueError(
        f"cache would keep {len(source):,} images in memory, expected"
        f" cache=False or at most {_MOST_CACHED:,} of them"
      )
    self._source = source
    self._size = size
    self._tokenize = tokenize
    self._of = f" of {name}" if name else ""
    self._flip = flip
    self._cache = {} if cache else None
    self._bad = bad
    self._max_pixels = max_pixels
    self._least_side = least_side
    self._max_small_share = max_small_share
    self._reading, self._decoding = reading, decoding

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example | None:
    if self._cache is None:
      return self._load(index)
    if index not in self._cache:
      self._cache[index] = self._load(index)
    return self._cache[index]

  def _load(self, index: int) -> Example | None:
    """Reads a record, or the first good one among its replacements."""
    if self._bad is None:
      try:
        return self._read(index)
      except images.TooSmall:
        return None
    total = len(self)
    tries = min(total, ENOUGH)
    for i in range(tries):
      try:
        example = self._read((index + i * _stride(total)) % total)
      except images.TooSmall as error:
        self._bad.add_small(str(error), total, self._max_small_share)
        return None
      except ValueError as error:
        self._bad.add(str(error), total)
      else:
        self._bad.add(None, total)
        return example
    raise ValueError(
      f"all {tries:,} records tried from record {index} on are bad; the first"
      f" is {self._bad.reasons[0]}"
    )

  def _read(self, index: int) -> Example:
    """Reads a record; raises ValueError for one that cannot be used."""
    try:
      with self._reading:
        record = self._source[index]
      with self._decoding:
        image = _square(record, self._size, self._max_pixels, self._least_side)
        if self._tokenize is None:
          flips = {"may_flip": np.array(True)} if self._flip else {}
          return {"image": image, **flips}
        captions = captions_of(record)
        tokens, mask = self._tokenize(captions)
        flips = {}
        if self._flip:
          flips["may_flip"] = ~np.array([*map(names_side, captions)])
        return {"image": image, "tokens": tokens, "mask": mask, **flips}
    except images.TooSmall as error:
      raise images.TooSmall(f"record {index}{self._of}: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:
      # array_record raises RuntimeError for a damaged file.
      raise ValueError(f"record {index}{self._of}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
  """Returns an error's text as one short printable line."""
  text = " ".join(str(error).split())
  if text.isprintable() and len(text) <= _LONGEST_REASON:
    return text
  return files.quote(text, _LONGEST_REASON)


def _stride(total: int) -> int:
  """Returns a step that visits all records and jumps out of a run of bad ones.

  The replacements for the records of a damaged file are thus far apart. With a
  step of 1, one good record would replace them all.
  """
  step = max(1, round(0.618 * total))
  while math.gcd(step, total) > 1:
    step += 1
  return step


def _square(
  record: Mapping, size: int, max_pixels: int, least_side: int
) -> np.ndarray:
  """Returns a record's image, cropped and resized to uint8 [size, size, 3]."""
  if "image" not in record:
    raise ValueError("it has no image")
  image = images.decode(
    record["image"], size, max_pixels=max_pixels, least_side=least_side
  )
  image = images.central_square(image)
  if len(image) < _LEAST_SIDE:
    raise ValueError(
      f"image is {len(image)} pixels narrow, expected at least {_LEAST_SIDE}"
    )
  return images.resize_bytes(image, size)
