"""Records of a split that are drawn for an evaluation, and its images."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from imagen_jax import files
from imagen_jax.data import images

_AT_ONCE = 4096  # record numbers that are drawn together


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Holds the records whose captions are sampled, in the order of the draws.

  Attributes:
    seed: of the draws.
    numbers: each record's number in its split.
    records: the records.
    captions: one caption of each record; None without captions.
  """

  seed: int
  numbers: tuple[int, ...]
  records: tuple[Mapping[str, Any], ...]
  captions: tuple[str, ...] | None

  def write(self, path: epath.Path, about: Mapping[str, Any]) -> None:
    """Writes the list of captions as JSON, to publish beside a score.

    Args:
      path: the file.
      about: the dataset and its split.
    """
    listed = {
      **about,
      "seed": self.seed,
      "records": self.numbers,
      "captions": self.captions,
    }
    text = json.dumps(listed, indent=1, ensure_ascii=False)
    files.write(path, text + "\n", parents=True)


def draw(
  source: Sequence[Mapping[str, Any]],
  count: int,
  seed: int,
  *,
  captions: bool,
) -> Drawn:
  """Draws different records at random, each with one of its captions.

  The first n of any number of draws are the same. Records that cannot be read,
  or have no caption, are left out.

  Args:
    source: the records.
    count: the number of records; all are taken if there are fewer.
    seed: of the order and of the choice among several captions.
    captions: whether records need a caption.

  Raises:
    ValueError: no record can be used.
  """
  numbers, records, texts = [], [], []
  for number in _numbers(len(source), seed):
    if len(numbers) == count:
      break
    try:
      record = source[number]
    except ValueError:
      continue
    text = _caption(record, number, seed) if captions else None
    if captions and not text:
      continue
    numbers.append(number)
    records.append(record)
    texts.append(text)
  if not numbers:
    raise ValueError(
      f"none of the {len(source)} records has a caption, expected one to sample"
    )
  return Drawn(
    seed, tuple(numbers), tuple(records), tuple(texts) if captions else None
  )


def _numbers(count: int, seed: int) -> Iterator[int]:
  """Yields 0 to count - 1 in a random order, of which a prefix is cheap."""
  rng, seen = np.random.default_rng(seed), set()
  while len(seen) < count:
    for number in rng.integers(count, size=_AT_ONCE).tolist():
      if number not in seen:
        seen.add(number)
        yield number


def _caption(record: Mapping[str, Any], number: int, seed: int) -> str | None:
  """Returns a record's caption, or one of several by the seed."""
  found = record["caption"]
  if not isinstance(found, list):
    return found.strip() and found
  found = [text for text in found if text.strip()]
  if not found:
    return None
  return found[np.random.default_rng((seed, number)).integers(len(found))]


def real_image(record: Mapping[str, Any], size: int) -> np.ndarray:
  """Decodes a record's image as it is compared: [size, size, 3], uint8.

  Its central square is resized, with antialiasing, as in training.

  Raises:
    ValueError: the image cannot be decoded.
  """
  square = images.central_square(images.decode(record["image"], size))
  return images.to_uint8(images.resize(images.to_float(square), size))


def reader(
  source: Sequence[Mapping[str, Any]], size: int
) -> Callable[[int], np.ndarray | None]:
  """Returns a function that reads real image i; None if it cannot be used."""

  def read(i: int) -> np.ndarray | None:
    try:
      return real_image(source[i], size)
    except ValueError:
      return None

  return read
