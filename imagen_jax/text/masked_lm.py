"""Masked language modelling of several captions of one picture.

An encoder can learn from text alone what a caption's words have to do with
each other: of two captions of one picture, set side by side, some words are
hidden, and what one caption hides the other one says in other words. To find
"blue" for "a [?] square below two circles" it must know which noun and which
side of "above" every adjective of the other belongs to.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.text.tokenizer import Tokenizer

# BERT's recipe (Devlin et al. 2019): of the chosen tokens 80 % are hidden,
# 10 % replaced at random and 10 % left, so that a real word is never beyond
# doubt. Its 15 % is for long text; captions that repeat each other bear more.
CHOSEN, HIDDEN, REPLACED = 0.25, 0.8, 0.1
FIRST_WORD = 3  # after pad, </s> and unk, which are neither hidden nor drawn


def pair(
  tokenizer: Tokenizer,
  captions: Sequence[Sequence[str]],
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Two different captions of each picture, one after the other.

  captions: for every picture, at least two. Returns ids [n, 2 length] int32
  and mask [n, 2 length] bool, the padding all at the end.
  """
  drawn = [rng.choice(len(texts), 2, replace=False) for texts in captions]
  sides = [
    tokenizer([texts[i[side]] for texts, i in zip(captions, drawn)])
    for side in (0, 1)
  ]
  ids, mask = (np.concatenate(part, axis=1) for part in zip(*sides))
  order = np.argsort(~mask, axis=1, kind="stable")
  return tuple(np.take_along_axis(a, order, axis=1) for a in (ids, mask))


def corrupt(
  key: jax.Array, ids: jax.Array, *, hidden_id: int
) -> tuple[jax.Array, jax.Array]:
  """(ids with words hidden or replaced, which were chosen), both [B, L]."""
  choose_key, how_key, draw_key = jax.random.split(key, 3)
  chosen = jax.random.bernoulli(choose_key, CHOSEN, ids.shape)
  chosen &= ids >= FIRST_WORD
  how = jax.random.uniform(how_key, ids.shape)
  drawn = jax.random.randint(draw_key, ids.shape, FIRST_WORD, hidden_id)
  replaced = jnp.where(how < HIDDEN + REPLACED, drawn, ids)
  corrupted = jnp.where(how < HIDDEN, hidden_id, replaced)
  return jnp.where(chosen, corrupted, ids), chosen


def masked_lm_loss(
  encoder: T5Encoder,
  params: Any,
  key: jax.Array,
  ids: jax.Array,
  mask: jax.Array,
  *,
  hidden_id: int,
) -> tuple[jax.Array, jax.Array]:
  """(cross-entropy in nats, accuracy) of the chosen tokens of ids [B, L].

  The output layer is the embedding, scaled by 1 / sqrt(emb_dim) as T5 does
  where it ties the two. hidden_id is the first id above the tokenizer's.
  """
  corrupted, chosen = corrupt(key, ids, hidden_id=hidden_id)
  states = encoder.apply({"params": params}, corrupted, mask)
  table = params["token_embedder"]["embedding"]
  logits = states @ table.T * encoder.emb_dim**-0.5
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
  count = jnp.maximum(chosen.sum(), 1)
  right = (logits.argmax(-1) == ids) & chosen
  return (loss * chosen).sum() / count, right.sum() / count
