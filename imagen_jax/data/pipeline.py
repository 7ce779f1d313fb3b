"""Training batches as a pure function of (seed, step), for any host count."""

import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import grain
import numpy as np

from imagen_jax import files
from imagen_jax.data import images

Batch = dict[str, np.ndarray]
Tokenize = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]

# Decoding and resizing release the interpreter lock. Two threads keep up with
# training and leave the processor to it.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
_LEAST_SIDE = 8  # pixels: smaller images are not worth learning from
_LONGEST_REASON = 240  # characters of the reason why a record is bad
_MOST_CACHED = 10**8  # examples of a source; an endless one would fill memory


# The records to read before the share of bad records is checked, and the most
# records to try in place of a bad one.
_ENOUGH = 1000


class BadRecords:
  """Counts the records that this host reads, and the bad ones among them.

  A record is bad if it cannot be used. It is counted every time it is read.
  Several threads may add records at once.

  Args:
    max_share: the largest share of bad records to accept, 0 to 1.

  Attributes:
    read: the number of records read.
    count: the number of bad records.
    reasons: the first three reasons, each naming its record.
  """

  def __init__(self, max_share: float):
    self.read = 0
    self.count = 0
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
      enough = self.read >= min(total, _ENOUGH)
      if enough and self.count > self._max_share * self.read:
        raise ValueError(
          f"{bad_sentence(self.count, self.read, ())}, more than the"
          f" {self._max_share:.3g} that max_bad_share allows; the first is"
          f" {self.reasons[0]}"
        )


def bad_sentence(count: int, read: int, reasons: Iterable[str]) -> str:
  """Formats counts of one host or of all hosts, with up to three reasons."""
  named = "; ".join([reason for reason in reasons if reason][:3])
  return (
    f"{count:,} of {read:,} records read are bad, a share of"
    f" {count / max(1, read):.3g}" + (f", such as {named}" if named else "")
  )


class Examples(Sequence):
  """Holds a source's records, with resized images and tokenized captions.

  Element i is dict(image=uint8 [size, size, 3], tokens=int32 [k, L], mask=bool
  [k, L]), where k is the number of the record's captions. Images have 8 bits,
  as if the data set had been stored at this size.

  Args:
    source: the records.
    size: the resolution of the images in pixels.
    tokenize: turns captions into tokens and mask. With None, captions are not
      read and an element has only its image.
    cache: keeps every element in memory from its first use on. An element takes
      size * size * 3 bytes and its tokens: 20,000 images take 15 MB at 16
      pixels, 250 MB at 64 and 3.9 GB at 256.
    bad: counts bad records. Each is replaced by another record, always the same
      one. With None, a bad record raises ValueError.
    max_pixels: the most pixels of an image to decode; a larger one is bad.
  """

  def __init__(
    self,
    source: Sequence[Mapping],
    size: int,
    *,
    tokenize: Tokenize | None,
    cache: bool,
    bad: BadRecords | None,
    max_pixels: int = images.MAX_PIXELS,
  ):
    if cache and len(source) > _MOST_CACHED:
      raise ValueError(
        f"cache would keep {len(source):,} images in memory, expected"
        f" cache=False or at most {_MOST_CACHED:,} of them"
      )
    self._source = source
    self._size = size
    self._tokenize = tokenize
    self._cache = {} if cache else None
    self._bad = bad
    self._max_pixels = max_pixels

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if self._cache is None:
      return self._load(index)
    if index not in self._cache:
      self._cache[index] = self._load(index)
    return self._cache[index]

  def _load(self, index: int) -> dict[str, np.ndarray]:
    """Reads a record, or the first good one among its replacements."""
    if self._bad is None:
      return self._read(index)
    total = len(self)
    tries = min(total, _ENOUGH)
    for i in range(tries):
      try:
        example = self._read((index + i * _stride(total)) % total)
      except ValueError as error:
        self._bad.add(str(error), total)
      else:
        self._bad.add(None, total)
        return example
    raise ValueError(
      f"all {tries:,} records tried from record {index} on are bad; the first"
      f" is {self._bad.reasons[0]}"
    )

  def _read(self, index: int) -> dict[str, np.ndarray]:
    """Reads a record; raises ValueError for one that cannot be used."""
    try:
      record = self._source[index]
      image = _square(record, self._size, self._max_pixels)
      if self._tokenize is None:
        return {"image": image}
      tokens, mask = self._tokenize(_captions(record))
      return {"image": image, "tokens": tokens, "mask": mask}
    except (OSError, RuntimeError, ValueError) as error:
      # array_record raises RuntimeError for a damaged file.
      raise ValueError(f"record {index}: {_reason(error)}") from error


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


def _square(record: Mapping, size: int, max_pixels: int) -> np.ndarray:
  """Returns a record's image, cropped and resized to uint8 [size, size, 3]."""
  if "image" not in record:
    raise ValueError("it has no image")
  image = images.decode(record["image"], size, max_pixels=max_pixels)
  image = images.central_square(image)
  if len(image) < _LEAST_SIDE:
    raise ValueError(
      f"image is {len(image)} pixels narrow, expected at least {_LEAST_SIDE}"
    )
  if len(image) == size:
    return image
  return images.to_uint8(images.resize(images.to_float(image), size))


def _captions(record: Mapping) -> list[str]:
  """Returns a record's captions without blank ones, at least one.

  Raises:
    ValueError: all captions are missing or blank, or one is not text.
  """
  if "caption" not in record:
    raise ValueError("it has no caption")
  found = record["caption"]
  many = isinstance(found, list | tuple | np.ndarray)
  texts = [_text(caption) for caption in (found if many else [found])]
  if not (texts := [text for text in texts if text.strip()]):
    raise ValueError("caption is empty")
  return texts


def _text(caption: str | bytes) -> str:
  """Returns a caption as str; ValueError if it is not text."""
  if not isinstance(caption, bytes | str):
    kind = type(caption).__name__
    raise ValueError(f"caption is {kind}, expected text")
  if isinstance(caption, str):
    return caption
  try:
    return caption.decode()
  except UnicodeDecodeError as error:
    raise ValueError("caption is not UTF-8") from error


def make_batches(
  source: Sequence[Mapping],
  *,
  size: int,
  lowres_size: int | None = None,
  crop: int | None = None,
  tokenize: Tokenize | None,
  global_batch: int,
  seed: int,
  start_step: int = 0,
  rows: Sequence[int] | None = None,
  cache: bool = False,
  bad: BadRecords | None = None,
  max_pixels: int = images.MAX_PIXELS,
) -> Iterator[Batch]:
  """Yields this host's rows of the global batches of steps start_step, ... .

  A global batch depends only on the source, the seed and the step.

  Args:
    source: records with an `image` (encoded, or uint8 as `images.decode` takes
      it) and a `caption`: str, bytes, or a list of them. From a list each epoch
      takes one caption by the seed.
    size: the resolution to resize images to, in pixels.
    lowres_size: the resolution that a super-resolution stage conditions on; it
      divides `size`. With None, batches have no `lowres`.
    crop: the size of the random window to train on; None uses the full image.
    tokenize: turns n captions into ids int32 [n, L] and mask bool [n, L], with
      the same L for all, or raises ValueError. It is called from several
      threads. With None, captions are not read.
    global_batch: the number of examples in a global batch.
    seed: of the order, the crops and the choice of captions.
    start_step: the step of the first batch.
    rows: the rows of the global batch to read; None reads all.
    cache: keeps resized images in memory, as Examples does.
    bad: counts records that cannot be used, each of which is replaced by
      another record. With None, the first such record raises ValueError.
    max_pixels: the most pixels of an image that can be used.

  Yields:
    image float32 [b, s, s, 3] in [-1, 1], with b the number of `rows` and s the
    crop or the size; lowres float32 [b, l, l, 3] in [-1, 1], with
    l = s * lowres_size / size; tokens int32 [b, L] and mask bool [b, L], unless
    `tokenize` is None.

  Raises:
    ValueError: a size, crop or row is out of range, the source has no records,
      or too many records are bad.
  """
  _check_sizes(size, lowres_size, crop)
  rows = range(global_batch) if rows is None else rows
  _check_rows(rows, global_batch)
  if not len(source):
    raise ValueError("source has no records")
  examples = Examples(
    source,
    size,
    tokenize=tokenize,
    cache=cache,
    bad=bad,
    max_pixels=max_pixels,
  )
  order = _in_order(examples, crop, seed)
  low_side = lowres_size and (crop or size) * lowres_size // size

  def batch(step: int) -> Batch:
    """Reads this host's rows of a step's global batch."""
    first = step * global_batch
    indices = [first + int(row) for row in rows]
    examples = [_one_caption(order[i], seed, i) for i in indices]
    return _collate(examples, low_side)

  # grain's elements are batches, not examples: a host's rows are no slice of
  # `order`. A resumed run starts at its step.
  steps = grain.MapDataset.range(start_step, sys.maxsize)
  return iter(steps.map(batch).to_iter_dataset(_READ))


def _in_order(
  examples: Examples, crop: int | None, seed: int
) -> grain.MapDataset:
  """Returns endless examples by global index, reshuffled every epoch."""
  order = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
  if crop is None:
    return order

  def window(example, rng):  # grain's rng is keyed by seed and global index
    image = images.random_crop(example["image"], crop, rng)
    return example | {"image": image}

  return order.random_map(window)


def _one_caption(example: Batch, seed: int, index: int) -> Batch:
  """Selects one of an example's captions, by the seed and the global index."""
  if "tokens" not in example:
    return example
  count = len(example["tokens"])
  # Keyed like the crops, so that hosts agree and a resumed run sees the same.
  i = np.random.default_rng((seed, index)).integers(count) if count > 1 else 0
  return example | {name: example[name][i] for name in ("tokens", "mask")}


def _collate(examples: list[Batch], low_side: int | None) -> Batch:
  """Stacks the examples of a batch, and adds the low-resolution images."""
  batch = {k: np.stack([e[k] for e in examples]) for k in examples[0]}
  batch["image"] = images.to_float(batch["image"])
  if low_side:
    batch["lowres"] = np.stack(
      [images.resize(x, low_side) for x in batch["image"]]
    )
  return batch


def _check_sizes(size: int, lowres_size: int | None, crop: int | None) -> None:
  """Raises ValueError unless lowres_size and crop fit the size."""
  if crop is not None and not 0 < crop <= size:
    raise ValueError(f"crop must be in 1..{size}, the size, got {crop}")
  if lowres_size is None:
    return
  if lowres_size < 1 or size % lowres_size:
    raise ValueError(f"lowres_size must divide {size}, got {lowres_size}")
  if crop is not None and crop % (size // lowres_size):
    factor = size // lowres_size
    raise ValueError(f"crop must be a multiple of {factor}, got {crop}")


def _check_rows(rows: Sequence[int], global_batch: int) -> None:
  """Raises ValueError unless there are rows, all within the global batch."""
  if global_batch < 1:
    raise ValueError(f"global_batch is {global_batch}, expected at least 1")
  outside = [int(row) for row in rows if not 0 <= row < global_batch]
  if outside or not len(rows):
    raise ValueError(
      f"rows are {outside}, expected some in 0..{global_batch - 1}"
    )
