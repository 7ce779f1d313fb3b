"""Text embeddings of prompts, by a frozen encoder (Sec. 2.1)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from imagen_jax.nets.bert import BertEncoder
from imagen_jax.nets.clip_text import ClipTextEncoder
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.parallel import compiler
from imagen_jax.parallel.mesh import (
  host_rows,
  local_rows,
  put_rows,
  to_host,
)
from imagen_jax.text.tokenizer import (
  Tokenizer,
  check_prompts,
  empty_prompt,
)
from imagen_jax.types import TextEmbedding

Encoder = T5Encoder | BertEncoder | ClipTextEncoder
NULLS = ("zeros", "empty")


@dataclasses.dataclass(frozen=True)
class Embedder:
  """Holds an encoder, and how nets see its outputs.

  Attributes:
    encoder: the net, of T5, BERT or CLIP.
    attend_padding: whether nets attend to outputs at padding as to real tokens.
      The encoder itself never attends to padding. Not in the paper: it does not
      mention padding. DeepFloyd IF attends to it.
    null: the null text. "zeros" zeroes the embeddings (Sec. 4.1). "empty"
      encodes the empty prompt, as DeepFloyd IF does.
  """

  encoder: Encoder
  attend_padding: bool = False
  null: str = "zeros"

  def __post_init__(self):
    if self.null not in NULLS:
      known = " or ".join(map(repr, NULLS))
      raise ValueError(f"null is {self.null!r}, expected {known}")

  def __call__(
    self, params: Any, ids: jax.Array, mask: jax.Array
  ) -> TextEmbedding:
    """Encodes ids [B, L] under mask [B, L] (True = real token).

    `null` of the result is left unset.
    """
    tokens = self.encoder.apply({"params": params}, ids, mask)
    seen = jnp.ones_like(mask) if self.attend_padding else mask
    return TextEmbedding(tokens, seen)

  def for_training(
    self, params: Any, ids: jax.Array, mask: jax.Array, dropped: jax.Array
  ) -> TextEmbedding:
    """Encodes a training batch whose examples `dropped` lose their prompts.

    With "empty", a dropped example is encoded as the empty prompt in place of
    its own. So the null text takes no second pass, but it is valid only for
    dropped examples.

    Args:
      params: the encoder's weights.
      ids: int32 [B, L].
      mask: bool [B, L], True = real token.
      dropped: bool [B].
    """
    if self.null == "zeros":
      return self(params, ids, mask)
    no_ids, no_mask = empty_prompt(self.encoder.special, ids.shape[1])
    ids = jnp.where(dropped[:, None], no_ids, ids)
    text = self(params, ids, jnp.where(dropped[:, None], no_mask, mask))
    return text.replace(null=text)


@dataclasses.dataclass(frozen=True)
class Unconditional:
  """Replaces an Embedder where nets are unconditional."""

  def __call__(self, params: Any, ids: None, mask: None) -> None:
    """Returns None, for Conditioning.text."""

  def for_training(
    self, params: Any, ids: None, mask: None, dropped: jax.Array
  ) -> None:
    """Returns None, for Conditioning.text."""


@dataclasses.dataclass(frozen=True)
class Stored:
  """Replaces an Embedder where the embeddings of captions are read.

  Attributes:
    null: as Embedder's.
  """

  null: str = "zeros"

  def for_training(
    self, params: Any, tokens: jax.Array, mask: jax.Array, dropped: jax.Array
  ) -> TextEmbedding:
    """Returns the embeddings as Embedder.for_training does.

    Args:
      params: with "empty", null_tokens [1, L, D] and null_mask [1, L].
      tokens: [B, L, D].
      mask: bool [B, L], True = real token.
      dropped: bool [B].
    """
    if self.null == "empty":
      tokens = jnp.where(dropped[:, None, None], params["null_tokens"], tokens)
      mask = jnp.where(dropped[:, None], params["null_mask"], mask)
    text = TextEmbedding(tokens.astype(jnp.float32), mask)
    return text.replace(null=text) if self.null == "empty" else text

  def for_sampling(
    self, params: Any, tokens: np.ndarray, mask: np.ndarray
  ) -> TextEmbedding:
    """Returns the embeddings with their null text, as TextEncoder does."""
    text = TextEmbedding(tokens.astype(np.float32), mask)
    if self.null == "zeros":
      return text
    row = TextEmbedding(params["null_tokens"], params["null_mask"])
    null = jax.tree.map(
      lambda all_rows, one: np.broadcast_to(
        np.asarray(one, all_rows.dtype), all_rows.shape
      ),
      text,
      to_host(row),
    )
    return text.replace(null=null)


@functools.partial(compiler.jit, static_argnames=("embedder", "rows"))
def encode(
  embedder: Embedder,
  params: Any,
  ids: jax.Array,
  mask: jax.Array,
  *,
  rows: NamedSharding | None = None,
) -> TextEmbedding:
  """Encodes as the embedder does; compiled once for all equal embedders.

  `rows` is the sharding of the result; None leaves it to the compiler.
  """
  text = embedder(params, ids, mask)
  return text if rows is None else jax.lax.with_sharding_constraint(text, rows)


class TextEncoder:
  """Encodes n prompts into a TextEmbedding: tokens [n, L, D], mask [n, L].

  The result is float32 in host memory. Batches always have `batch_size` rows,
  or as many as shard the prompts: the last batch is padded with empty rows. So
  one program is compiled, and a prompt's embedding does not depend on the
  number of prompts. Tokens at padding are the encoder's outputs there.

  Args:
    embedder: the encoder and its null text.
    params: the encoder's weights, in any dtype and on any devices.
    tokenizer: encodes the prompts.
    batch_size: the prompts to encode at a time, at least 1.

  Attributes:
    tokenizer: the tokenizer.
    dim: the width D of the embeddings.
    length: the number L of tokens.

  Raises:
    ValueError: batch_size is less than 1, or the tokenizer has more pieces than
      the encoder embeds.
  """

  def __init__(
    self, embedder: Embedder, params: Any, tokenizer: Tokenizer, batch_size: int
  ):
    if batch_size < 1:
      raise ValueError(f"text batch size is {batch_size}, expected at least 1")
    encoder = embedder.encoder
    if tokenizer.vocab_size > encoder.vocab_size:
      raise ValueError(
        f"the tokenizer has {tokenizer.vocab_size} pieces, but the text "
        f"encoder embeds only {encoder.vocab_size}"
      )
    self._params = params
    self.tokenizer = tokenizer
    self._batch_size = batch_size
    self._apply = functools.partial(encode, embedder)
    self._has_null = embedder.null == "empty"
    self._special = encoder.special
    self.dim = encoder.emb_dim
    self.length = tokenizer.length

  def __call__(
    self, prompts: Sequence[str], rows: NamedSharding | None = None
  ) -> TextEmbedding:
    """Encodes prompts, equal ones once.

    Args:
      prompts: the prompts.
      rows: shards the prompts, one for each row of a batch. Each group of
        devices encodes the prompts of its own rows.

    Returns:
      One row per prompt, in host memory. With `rows` a process has only the
      rows that mesh.host_rows names.

    Raises:
      ValueError: there are no prompts, or the tokenizer refuses one.
    """
    if not len(prompts):
      raise ValueError("there are no prompts, expected at least one")
    check_prompts(prompts)
    which = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    ids, mask = self.tokenizer(list(which))
    numbers = np.array([which[prompt] for prompt in prompts])
    each = len(numbers) if rows is None else rows.shard_shape(numbers.shape)[0]
    groups = numbers.reshape(-1, each)
    held = range(1) if rows is None else host_rows(rows, len(numbers)) // each
    distinct = [np.unique(group) for group in groups]
    count = max(map(len, distinct))
    fill = [np.pad(some, (0, count - len(some)), "edge") for some in distinct]
    fill = np.concatenate(fill)
    text = self._groups(ids[fill], mask[fill], len(groups), rows)
    places = np.concatenate(
      [
        place * count + np.searchsorted(distinct[i], groups[i])
        for place, i in enumerate(dict.fromkeys(held))
      ]
    )
    return jax.tree.map(lambda leaf: leaf[places], text)

  def from_ids(self, ids: np.ndarray, mask: np.ndarray) -> TextEmbedding:
    """Encodes n tokenized prompts: ids int32 [n, L], mask bool [n, L]."""
    return self._groups(ids, mask, 1, None)

  def _groups(
    self,
    ids: np.ndarray,
    mask: np.ndarray,
    ways: int,
    rows: NamedSharding | None,
  ) -> TextEmbedding:
    """Encodes `ways` groups of equally many prompts, side by side.

    Args:
      ids: int32 [ways * n, L].
      mask: bool [ways * n, L].
      ways: the number of groups.
      rows: the sharding of [ways * m, ...], a group to a shard; or None.

    Returns:
      [k * n, ...] for the k groups that this process holds.
    """
    count = len(ids) // ways
    size = max(1, self._batch_size // ways)  # rows of a group at a time
    of_group = lambda a: a.reshape(ways, count, *a.shape[1:])
    parts = []
    for start in range(0, count, size):
      part = [of_group(a)[:, start : start + size] for a in (ids, mask)]
      fill = [(0, 0), (0, size - part[0].shape[1]), (0, 0)]
      part = [np.pad(a, fill).reshape(ways * size, -1) for a in part]
      text = self._encode(*part, None if ways == 1 else rows)
      parts.append(
        jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), text)
      )
    join = lambda *leaves: np.concatenate(leaves, axis=1)[:, :count]
    text = jax.tree.map(join, *parts)
    text = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), text)
    if not self._has_null:
      return text
    total = len(text.mask)
    spread = lambda row: np.broadcast_to(row, (total, *row.shape[1:]))
    return text.replace(null=jax.tree.map(spread, self._no_words))

  @functools.cached_property
  def _no_words(self) -> TextEmbedding:
    """The embedding of the empty prompt, one row."""
    fill = [(0, self._batch_size - 1), (0, 0)]
    empty = empty_prompt(self._special, self.length)
    ids, mask = (np.pad(a, fill) for a in empty)
    return jax.tree.map(lambda rows: rows[:1], self._encode(ids, mask, None))

  def _encode(
    self, ids: np.ndarray, mask: np.ndarray, rows: NamedSharding | None
  ) -> TextEmbedding:
    """Encodes a batch; without rows, every process gets the whole result."""
    if rows is None:
      return to_host(self._apply(self._params, ids, mask))
    ids, mask = put_rows((ids, mask), rows)
    return local_rows(self._apply(self._params, ids, mask, rows=rows))
