"""Training batches as a pure function of (seed, step), for any host count.

One pool of threads reads and decodes single examples ahead, so that a small
batch uses all cores too. A record is read before its thread may decode it: many
reads are in flight, and no more images are decoded than there are cores.
"""

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np

from imagen_jax.data import images
from imagen_jax.data.examples import (
  ENOUGH,
  BadRecords,
  Example,
  Examples,
  Slots,
  Tokenize,
)
from imagen_jax.data.feed import BUFFER, READS
from imagen_jax.data.mixture import Ingredient, Mixture

Batch = dict[str, np.ndarray]


def make_batches(
  source: Sequence[Mapping] | Mixture,
  *,
  size: int,
  lowres_size: int | None = None,
  crop: int | None = None,
  tokenize: Tokenize | None,
  global_batch: int,
  seed: int,
  start_step: int = 0,
  steps: int | None = None,
  rows: Sequence[int] | None = None,
  flip: bool = False,
  cache: bool = False,
  bad: BadRecords | None = None,
  max_pixels: int = images.MAX_PIXELS,
  least_side: int = 0,
  max_small_share: float = 1.0,
  threads: int | None = None,
  reads: int = READS,
  buffer: int = BUFFER,
) -> Iterator[Batch]:
  """Yields this host's rows of the global batches of steps start_step, ... .

  A global batch depends only on the source, the seed and the step. Closing the
  iterator ends its threads, each when it has read or decoded its record.

  Args:
    source: records with an `image` (encoded, or uint8 as `images.decode` takes
      it) and a `caption`: str, bytes, or a list of them. From a list each epoch
      takes one caption by the seed. A Mixture has several such sources.
    size: the resolution to resize images to, in pixels.
    lowres_size: the resolution that a super-resolution stage conditions on; it
      divides `size`. With None, batches have no `lowres`.
    crop: the size of the random window to train on; None uses the full image.
    tokenize: turns n captions into ids int32 [n, L] and mask bool [n, L], with
      the same L for all, or raises ValueError. It is called from several
      threads. With None, captions are not read.
    global_batch: the number of examples in a global batch.
    seed: of the order, the crops, the flips and the choice of captions.
    start_step: the step of the first batch.
    steps: the number of batches; None for batches without end.
    rows: the rows of the global batch to read; None reads all.
    flip: mirrors half of the images, as Examples allows it.
    cache: keeps resized images in memory, as Examples does.
    bad: counts records that cannot be used, each of which is replaced by
      another record. With None, the first such record raises ValueError.
    max_pixels: the most pixels of an image that can be used.
    least_side: the fewest pixels of an image's smaller side. The example of a
      smaller one is replaced by one of a random record, chosen by the seed and
      the example's index. Epochs thus replace it by different records, and no
      record is used more often than others.
    max_small_share: the largest share of such images to accept, 0 to 1, if
      `bad` counts them.
    threads: the most records to decode at once; None decodes as many as there
      are cores that this process may use.
    reads: the most records to read at once.
    buffer: the batches to read ahead. At most max(buffer * b, threads + reads)
      examples are in memory, and `threads` decoded images.

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
  if not isinstance(source, Mixture):
    source = Mixture((Ingredient(source, 1.0, ""),))
  if not all(len(each.records) for each in source.ingredients):
    raise ValueError("source has no records")
  threads = threads or usable_cores()
  slots = Slots(reads), Slots(threads)
  reading, decoding = slots
  examples = [
    Examples(
      each.records,
      size,
      name=each.name,
      tokenize=tokenize,
      flip=flip,
      cache=cache,
      bad=bad,
      max_pixels=max_pixels,
      least_side=least_side,
      max_small_share=max_small_share,
      reading=reading,
      decoding=decoding,
    )
    for each in source.ingredients
  ]
  weights = [each.weight for each in source.ingredients]
  order = _in_order(examples, weights, crop, seed)
  low_side = lowres_size and (crop or size) * lowres_size // size
  count = len(rows)

  def example(i: int) -> Example:
    """Reads the example i of this host; its first example is that of step 0."""
    step, row = divmod(i, count)
    index = step * global_batch + int(rows[row])
    found = _large_enough(order, seed, index)
    with decoding:
      found = _one_caption(found, seed, index)
      return _to_train_on(_flipped(found, seed, index), low_side)

  # A resumed run starts at its step.
  end = sys.maxsize if steps is None else (start_step + steps) * count
  indices = grain.MapDataset.range(start_step * count, end)
  ahead = grain.ReadOptions(
    num_threads=threads + reads,
    prefetch_buffer_size=max(buffer * count, threads + reads),
  )
  return _stacked(indices.map(example).to_iter_dataset(ahead), count, slots)


def usable_cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
    return os.process_cpu_count() or 1
  if hasattr(os, "sched_getaffinity"):  # on Linux
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _stacked(
  dataset: grain.IterDataset, count: int, slots: Sequence[Slots]
) -> Iterator[Batch]:
  """Yields batches of `count` examples, and ends all threads when closed."""
  examples = iter(dataset)
  try:
    while batch := list(itertools.islice(examples, count)):
      yield {name: np.stack([e[name] for e in batch]) for name in batch[0]}
  finally:
    examples.close()
    for each in slots:
      each.close()


def _in_order(
  examples: Sequence[Examples],
  weights: Sequence[float],
  crop: int | None,
  seed: int,
) -> grain.MapDataset:
  """Returns endless examples by global index, reshuffled every epoch.

  Of several sources, the shares of any range of indices are those of their
  weights. An epoch of one source is not one of the others.
  """
  orders = [
    grain.MapDataset.source(each).seed(own).shuffle().repeat()
    for each, own in zip(examples, _seeds(seed, len(examples)))
  ]
  order = orders[0]
  if len(orders) > 1:
    order = grain.MapDataset.mix(orders, weights).seed(seed)
  if crop is None:
    return order

  def window(example, rng):  # grain's rng is keyed by seed and global index
    image = images.random_crop(example["image"], crop, rng)
    return example | {"image": image}

  return order.random_map(window)


def _seeds(seed: int, count: int) -> list[int]:
  """Returns a seed for each source; the first source has the seed itself."""
  others = np.random.SeedSequence(seed).generate_state(count)[1:]
  return [seed, *map(int, others)]


def _large_enough(order: grain.MapDataset, seed: int, index: int) -> Example:
  """Reads an example; another one, by seed and index, if it is too small."""
  example = order[index]
  if example is not None:
    return example
  # Keyed apart from the choice of captions. A position is that of any epoch.
  rng = np.random.default_rng((seed, index, 1))
  for _ in range(ENOUGH):
    example = order[int(rng.integers(2**40))]
    if example is not None:
      return example
  raise ValueError(
    f"the images of {ENOUGH:,} records drawn at random are all smaller than"
    " least_side: prepare a data set without them, or lower it"
  )


def _one_caption(example: Example, seed: int, index: int) -> Example:
  """Selects one of an example's captions, by the seed and the global index."""
  if "tokens" not in example:
    return example
  count = len(example["tokens"])
  # Keyed like the crops, so that hosts agree and a resumed run sees the same.
  i = np.random.default_rng((seed, index)).integers(count) if count > 1 else 0
  of_captions = example.keys() - {"image"}
  return example | {name: example[name][i] for name in of_captions}


def _flipped(example: Example, seed: int, index: int) -> Example:
  """Mirrors half of the images that may be, by the seed and global index."""
  if not (example := dict(example)).pop("may_flip", False):
    return example
  # Keyed apart from the choice of captions and from replacements.
  if np.random.default_rng((seed, index, 2)).integers(2):
    example["image"] = example["image"][:, ::-1]
  return example


def _to_train_on(example: Example, low_side: int | None) -> Example:
  """Returns an example with float images, and with the low-resolution one."""
  image = images.to_float(example["image"])
  example = example | {"image": image}
  if low_side:
    example["lowres"] = images.resize(image, low_side)
  return example


def _check_sizes(size: int, lowres_size: int | None, crop: int | None) -> None:
  """Raises ValueError unless lowres_size and crop fit the size."""
  if crop is not None and not 0 < crop <= size:
    raise ValueError(f"crop is {crop}, expected 1 to {size}, the size")
  if lowres_size is None:
    return
  if lowres_size < 1 or size % lowres_size:
    raise ValueError(
      f"lowres_size is {lowres_size}, expected a divisor of {size}"
    )
  if crop is not None and crop % (size // lowres_size):
    factor = size // lowres_size
    raise ValueError(f"crop is {crop}, expected a multiple of {factor}")


def _check_rows(rows: Sequence[int], global_batch: int) -> None:
  """Raises ValueError unless there are rows, all within the global batch."""
  if global_batch < 1:
    raise ValueError(f"global_batch is {global_batch}, expected at least 1")
  outside = [int(row) for row in rows if not 0 <= row < global_batch]
  if outside or not len(rows):
    raise ValueError(
      f"rows are {outside}, expected some in 0..{global_batch - 1}"
    )
