"""Prompts to text embeddings with a frozen encoder."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.types import TextEmbedding


class TextEncoder:
  """list of n prompts -> TextEmbedding: tokens [n, L, D] float32, mask [n, L].

  It encodes batch_size prompts at a time, always: the last batch is filled up
  with empty rows. So one program is compiled, and a prompt's embedding does not
  depend on how many come with it. Tokens at padding are what the encoder makes
  of them. params may be of any dtype and lie on any devices.
  """

  def __init__(
    self, module: T5Encoder, params: Any, tokenizer: Tokenizer, batch_size: int
  ):
    if batch_size < 1:
      raise ValueError(f"text batch size is {batch_size}, expected at least 1")
    if tokenizer.vocab_size > module.vocab_size:
      raise ValueError(
        f"the tokenizer has {tokenizer.vocab_size} pieces, but the text "
        f"encoder embeds only {module.vocab_size}"
      )
    self._params = params
    self.tokenizer = tokenizer
    self._batch_size = batch_size
    self._apply = jax.jit(module.apply)
    self.dim = module.emb_dim
    self.length = tokenizer.length

  def __call__(self, prompts: Sequence[str]) -> TextEmbedding:
    """Raises ValueError for no prompts and for those the tokenizer refuses."""
    if not len(prompts):
      raise ValueError("there are no prompts, expected at least one")
    return self.from_ids(*self.tokenizer(prompts))

  def from_ids(self, ids: np.ndarray, mask: np.ndarray) -> TextEmbedding:
    """The same for prompts already tokenized: ids, mask [n, L]."""
    starts = range(0, len(ids), self._batch_size)
    tokens = [
      self._encode(*(a[i : i + self._batch_size] for a in (ids, mask)))
      for i in starts
    ]
    return TextEmbedding(jnp.concatenate(tokens)[: len(ids)], jnp.asarray(mask))

  def _encode(self, ids: np.ndarray, mask: np.ndarray) -> jax.Array:
    fill = [(0, self._batch_size - len(ids)), (0, 0)]
    ids, mask = np.pad(ids, fill), np.pad(mask, fill)
    return self._apply({"params": self._params}, ids, mask)
