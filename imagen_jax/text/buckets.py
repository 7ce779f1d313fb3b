"""Embedding of many captions, each trimmed to its tokens."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax.parallel import mesh
from imagen_jax.text.encoder import Embedder, encode
from imagen_jax.text.tokenizer import Tokenizer, empty_prompt

_SHORTEST = 16  # tokens of the smallest bucket; fewer would not fill a batch


def buckets(length: int) -> list[int]:
  """Returns the lengths of batches: the largest, its half and so on.

  A program is compiled for each. Captions are padded to less than twice their
  length, instead of to the largest.
  """
  found = [length]
  while (half := -(-found[-1] // 2)) >= _SHORTEST:
    found.append(half)
  return found[::-1]


@dataclasses.dataclass(frozen=True)
class BucketEncoder:
  """Embeds captions in batches of similar lengths, on this process's devices.

  A result depends on the caption's place in its batch no more than rounding
  does. So equal captions in equal order give equal bytes.

  Attributes:
    embedder: the encoder. Where it attends to padding, nothing is trimmed.
    params: its weights, on the devices.
    tokenizer: encodes the captions.
    batch_size: the captions of the largest length to embed at a time.
    devices: the mesh, which must be set.
  """

  embedder: Embedder
  params: Any
  tokenizer: Tokenizer
  batch_size: int
  devices: Mesh

  def __call__(
    self, ids: np.ndarray, mask: np.ndarray
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Embeds captions, the shortest first.

    Args:
      ids: int32 [n, L], from the tokenizer.
      mask: bool [n, L], True = real token.

    Yields:
      The index of a caption, and its tokens float32 [count, D].
    """
    before = None  # the devices compute the next batch while one is used
    for length, rows in self._batches(mask.sum(1)):
      batch = self._encode(ids[rows, :length], mask[rows, :length], length)
      if before is not None:
        yield from self._trimmed(mask, *before)
      before = rows, batch
    if before is not None:
      yield from self._trimmed(mask, *before)

  def empty(self) -> np.ndarray:
    """Embeds the empty prompt: tokens float32 [count, D]."""
    special = self.embedder.encoder.special
    ((_, tokens),) = self(*empty_prompt(special, self.tokenizer.length))
    return tokens

  def _batches(self, counts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the length of each batch, and the indices of its captions."""
    longest = self.tokenizer.length
    lengths = np.array(buckets(longest))
    if self.embedder.attend_padding:
      lengths = np.array([longest])
    of = lengths[np.searchsorted(lengths, counts)]
    for length in lengths.tolist():
      rows, size = np.flatnonzero(of == length), self._size(length)
      for start in range(0, len(rows), size):
        yield length, rows[start : start + size]

  def _size(self, length: int) -> int:
    """Returns the rows of a batch: about as many tokens at all lengths."""
    rows = self.batch_size * (self.tokenizer.length // length)
    return mesh.whole_rows(self.devices, rows)

  def _encode(
    self, ids: np.ndarray, mask: np.ndarray, length: int
  ) -> jax.Array:
    """Encodes a batch, filled up with empty rows."""
    size = self._size(length)
    rows = mesh.batch_sharding(self.devices, size)
    fill = [(0, size - len(ids)), (0, 0)]
    ids, mask = (np.pad(array, fill) for array in (ids, mask))
    ids, mask = mesh.put_rows((ids, mask), rows)
    return encode(self.embedder, self.params, ids, mask, rows=rows).tokens

  def _trimmed(
    self, mask: np.ndarray, rows: np.ndarray, batch: jax.Array
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the tokens of a batch's captions."""
    tokens = mesh.local_rows(batch)
    counts = mask[rows].sum(1)
    if self.embedder.attend_padding:
      counts[:] = tokens.shape[1]
    for row, count, each in zip(rows.tolist(), counts.tolist(), tokens):
      yield row, each[:count]
