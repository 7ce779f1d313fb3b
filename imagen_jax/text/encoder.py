"""Text embeddings of prompts, by a frozen encoder (Sec. 2.1)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.parallel.mesh import to_host
from imagen_jax.text.tokenizer import Tokenizer, empty_prompt
from imagen_jax.types import TextEmbedding

NULLS = ("zeros", "empty")


@dataclasses.dataclass(frozen=True)
class Embedder:
  """Holds an encoder, and how nets see its outputs.

  Attributes:
    encoder: the T5 encoder.
    attend_padding: whether nets attend to outputs at padding as to real tokens.
      The encoder itself never attends to padding. Not in the paper: it does not
      mention padding. DeepFloyd IF attends to it.
    null: the null text. "zeros" zeroes the embeddings (Sec. 4.1). "empty"
      encodes the empty prompt, as DeepFloyd IF does.
  """

  encoder: T5Encoder
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
    no_ids, no_mask = empty_prompt(ids.shape[1])
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


# Compiled once for all encoders with the same settings.
_embed = jax.jit(Embedder.__call__, static_argnames="self")


class TextEncoder:
  """Encodes n prompts into a TextEmbedding: tokens [n, L, D], mask [n, L].

  The result is float32 in host memory, all of it on every host. Batches always
  have `batch_size` rows: the last batch is padded with empty rows. So one
  program is compiled, and a prompt's embedding does not depend on the number of
  prompts. Tokens at padding are the encoder's outputs there.

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
    self._apply = functools.partial(_embed, embedder)
    self._has_null = embedder.null == "empty"
    self.dim = encoder.emb_dim
    self.length = tokenizer.length

  def __call__(self, prompts: Sequence[str]) -> TextEmbedding:
    """Encodes prompts.

    Raises:
      ValueError: there are no prompts, or the tokenizer refuses one.
    """
    if not len(prompts):
      raise ValueError("there are no prompts, expected at least one")
    return self.from_ids(*self.tokenizer(prompts))

  def from_ids(self, ids: np.ndarray, mask: np.ndarray) -> TextEmbedding:
    """Encodes n tokenized prompts: ids int32 [n, L], mask bool [n, L]."""
    starts = range(0, len(ids), self._batch_size)
    parts = [
      self._encode(*(a[i : i + self._batch_size] for a in (ids, mask)))
      for i in starts
    ]
    text = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    text = jax.tree.map(lambda rows: rows[: len(ids)], text)
    if not self._has_null:
      return text
    spread = lambda row: np.broadcast_to(row, (len(ids), *row.shape[1:]))
    return text.replace(null=jax.tree.map(spread, self._no_words))

  @functools.cached_property
  def _no_words(self) -> TextEmbedding:
    """The embedding of the empty prompt, one row."""
    text = self._encode(*empty_prompt(self.length))
    return jax.tree.map(lambda rows: rows[:1], text)

  def _encode(self, ids: np.ndarray, mask: np.ndarray) -> TextEmbedding:
    fill = [(0, self._batch_size - len(ids)), (0, 0)]
    ids, mask = np.pad(ids, fill), np.pad(mask, fill)
    return to_host(self._apply(self._params, ids, mask))
