"""Prompts to text embeddings with a frozen encoder."""

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
  """An encoder, and what nets are told of its outputs.

  attend_padding: to nets the outputs at padding are as real as others, which
  to the encoder they never are. null: what stands in for no prompt, "zeros",
  the paper's (Sec. 4.1), or "empty", the encoder's outputs for no words. The
  paper is silent on padding; DeepFloyd IF has True and "empty".
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
    """Of ids and mask [B, L], True = real; what no prompt is, is not told."""
    tokens = self.encoder.apply({"params": params}, ids, mask)
    seen = jnp.ones_like(mask) if self.attend_padding else mask
    return TextEmbedding(tokens, seen)

  def for_training(
    self, params: Any, ids: jax.Array, mask: jax.Array, dropped: jax.Array
  ) -> TextEmbedding:
    """The same of a batch whose rows where dropped [B] lose their prompts.

    Those rows alone are right in its null: what would be encoded in vain is
    encoded as the empty prompt in its place, so that this costs nothing.
    """
    if self.null == "zeros":
      return self(params, ids, mask)
    no_ids, no_mask = empty_prompt(ids.shape[1])
    ids = jnp.where(dropped[:, None], no_ids, ids)
    text = self(params, ids, jnp.where(dropped[:, None], no_mask, mask))
    return text.replace(null=text)


@dataclasses.dataclass(frozen=True)
class Unconditional:
  """Stands in for an Embedder where nets are unconditional."""

  def __call__(self, params: Any, ids: None, mask: None) -> None:
    """Returns None, for Conditioning.text."""

  def for_training(
    self, params: Any, ids: None, mask: None, dropped: jax.Array
  ) -> None:
    """Returns None, for Conditioning.text."""


# One program for all encoders of the same settings.
_embed = jax.jit(Embedder.__call__, static_argnames="self")


class TextEncoder:
  """list of n prompts -> TextEmbedding: tokens [n, L, D] float32, mask [n, L].

  The result is in the host's memory, whole on every host. batch_size prompts
  are encoded at a time, always: the last batch is filled up with empty rows.
  So one program is compiled, and a prompt's embedding does not depend on how
  many come with it. Tokens at padding are what the encoder makes of them.
  params may be of any dtype and lie on any devices.
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
    """Raises ValueError for no prompts and for those the tokenizer refuses."""
    if not len(prompts):
      raise ValueError("there are no prompts, expected at least one")
    return self.from_ids(*self.tokenizer(prompts))

  def from_ids(self, ids: np.ndarray, mask: np.ndarray) -> TextEmbedding:
    """The same for prompts already tokenized: ids, mask [n, L]."""
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
    """The empty prompt, one row."""
    text = self._encode(*empty_prompt(self.length))
    return jax.tree.map(lambda rows: rows[:1], text)

  def _encode(self, ids: np.ndarray, mask: np.ndarray) -> TextEmbedding:
    fill = [(0, self._batch_size - len(ids)), (0, 0)]
    ids, mask = np.pad(ids, fill), np.pad(mask, fill)
    return to_host(self._apply(self._params, ids, mask))
