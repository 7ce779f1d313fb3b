"""Training batches as a pure function of (seed, step), for any host count."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import numpy as np

from imagen_jax.data import images

Batch = dict[str, np.ndarray]
Tokenize = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]

# Decoding and resizing leave the interpreter lock; two threads keep up with
# training and leave the processor to it.
_READ = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


class Pictures(Sequence):
  """A source's records with their pictures decoded and resized.

  Element i is dict(image=uint8 [size, size, 3], caption=str): 8 bits, as if
  the dataset had been stored at this size. With `cache` every picture is
  kept in memory from its first use on: size * size * 3 bytes each, which for
  20,000 of them is 15 MB at 16 pixels, 250 MB at 64, 3.9 GB at 256.
  """

  def __init__(self, source: Sequence[Mapping], size: int, cache: bool):
    self._source = source
    self._size = size
    self._cache = {} if cache else None

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
    if self._cache is None:
      return self._load(index)
    if index not in self._cache:
      self._cache[index] = self._load(index)
    return self._cache[index]

  def _load(self, index: int) -> dict[str, np.ndarray | str]:
    record = self._source[index]
    caption = record["caption"]
    if isinstance(caption, bytes):
      caption = caption.decode()
    if not caption.strip():
      raise ValueError(f"record {index} has an empty caption")
    try:
      image = images.central_square(images.decode(record["image"]))
    except ValueError as error:
      raise ValueError(f"record {index}: {error}") from error
    if len(image) != self._size:
      small = images.resize(images.to_float(image), self._size)
      image = images.to_uint8(small)
    return {"image": image, "caption": caption}


def make_batches(
  source: Sequence[Mapping],
  *,
  size: int,
  lowres_size: int | None = None,
  crop: int | None = None,
  tokenize: Tokenize,
  global_batch: int,
  seed: int,
  start_step: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
  cache: bool = False,
) -> Iterator[Batch]:
  """This shard's rows of the global batches of steps start_step, ... .

  source: records with an `image` (encoded, or uint8 [H, W, 3]) and a
  `caption` (str or bytes). Pictures are resized to `size`; with `crop` a
  random window of that side is trained on. A super-resolution stage also
  sees it shrunk by size / lowres_size. `tokenize` turns n captions into ids
  int32 [n, L] and mask bool [n, L], and is called from threads.

  Yields image float32 [b, s, s, 3] and lowres float32 [b, l, l, 3] in
  [-1, 1], tokens int32 [b, L] and mask bool [b, L], with s the crop or the
  size, l = s * lowres_size / size, and b = global_batch / shard_count. Shard
  i has the i-th block of b rows of the global batch, which itself depends on
  nothing but the seed and the step.
  """
  _check_sizes(size, lowres_size, crop)
  _check_shards(global_batch, shard_index, shard_count)
  if not len(source):
    raise ValueError("source has no records")
  examples = _examples(Pictures(source, size, cache), crop, seed)
  low_side = lowres_size and (crop or size) * lowres_size // size
  rows = global_batch // shard_count

  def batch(step: int) -> Batch:
    first = step * global_batch + shard_index * rows
    block = [examples[i] for i in range(first, first + rows)]
    return _collate(block, low_side, tokenize)

  # Whole batches are the elements that the threads fill in: a shard's block
  # of rows is not a slice of `examples`, and to resume is to count from there.
  steps = grain.MapDataset.range(start_step, sys.maxsize)
  return iter(steps.map(batch).to_iter_dataset(_READ))


def _examples(
  pictures: Pictures, crop: int | None, seed: int
) -> grain.MapDataset:
  """Endless examples by global index, in a new order every epoch."""
  order = grain.MapDataset.source(pictures).seed(seed).shuffle().repeat()
  if crop is None:
    return order

  def window(example, rng):  # grain's rng is keyed by seed and global index
    image = images.random_crop(example["image"], crop, rng)
    return example | {"image": image}

  return order.random_map(window)


def _collate(
  examples: list[dict], low_side: int | None, tokenize: Tokenize
) -> Batch:
  """Examples of one batch -> its arrays."""
  image = images.to_float(np.stack([e["image"] for e in examples]))
  tokens, mask = tokenize([e["caption"] for e in examples])
  batch = {"image": image, "tokens": tokens, "mask": mask}
  if low_side:
    batch["lowres"] = np.stack([images.resize(x, low_side) for x in image])
  return batch


def _check_sizes(size: int, lowres_size: int | None, crop: int | None) -> None:
  if crop is not None and not 0 < crop <= size:
    raise ValueError(f"crop must be in 1..{size}, the size, got {crop}")
  if lowres_size is None:
    return
  if lowres_size < 1 or size % lowres_size:
    raise ValueError(f"lowres_size must divide {size}, got {lowres_size}")
  if crop is not None and crop % (size // lowres_size):
    factor = size // lowres_size
    raise ValueError(f"crop must be a multiple of {factor}, got {crop}")


def _check_shards(global_batch: int, shard_index: int, shard_count: int):
  if not 0 <= shard_index < shard_count:
    raise ValueError(
      f"shard_index must be in 0..{shard_count - 1}, got {shard_index}"
    )
  if global_batch < 1 or global_batch % shard_count:
    raise ValueError(
      f"global_batch must be a positive multiple of {shard_count},"
      f" the shard count, got {global_batch}"
    )
