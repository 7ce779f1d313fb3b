"""A text encoder's training on text alone: captions into plain descriptions.

T5 learns from text with a decoder that reads the encoder's tokens, and all
that the decoder is to know must be in them (Raffel et al. 2020). Here it writes
down what the caption says, in a fixed order: first whatever is at the top. It
has one layer, so it cannot work out what belongs together: of "two blue
circles below a square" the token "blue" must itself tell that it is what is at
the bottom, and the whole description depends on such tokens.

(Neither words guessed in place of hidden ones nor captions said in other words
taught an encoder that: all but one or two words come out without it.)
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagen_jax.nets.layers import at_own_precision
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.text.tokenizer import Tokenizer


class Describer(nn.Module):
  """The encoder and a decoder of one layer, which is thrown away later."""

  encoder: T5Encoder

  @property
  def precision(self) -> str:
    """The encoder's precision of products of float32."""
    return self.encoder.precision

  @nn.compact
  @at_own_precision
  def __call__(
    self, ids: jax.Array, mask: jax.Array, target: jax.Array
  ) -> jax.Array:
    """ids, mask, target [B, L] -> logits [B, L, vocabulary] of the target.

    Those of a token see the target's tokens before it, and all of ids.
    """
    dim, heads = self.encoder.emb_dim, self.encoder.num_heads
    attend = lambda name: nn.MultiHeadDotProductAttention(heads, name=name)
    states = self.encoder(ids, mask)
    table = nn.Embed(self.encoder.vocab_size, dim, name="token_embedder")
    before = jnp.pad(target[:, :-1], ((0, 0), (1, 0)))  # pad starts, as in T5
    position = self.param(
      "position", nn.initializers.normal(0.02), (ids.shape[1], dim)
    )
    x = table(before) + position
    h = nn.RMSNorm()(x)
    x += attend("self_attention")(h, mask=nn.make_causal_mask(before))
    h = nn.RMSNorm()(x)
    real = nn.make_attention_mask(jnp.ones_like(mask), mask)
    x += attend("cross_attention")(h, states, mask=real)
    h = nn.gelu(nn.Dense(4 * dim)(nn.RMSNorm()(x)))
    x += nn.Dense(dim)(h)
    return table.attend(nn.RMSNorm()(x))


def pair(
  tokenizer: Tokenizer,
  texts: Sequence[Sequence[str]],
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """A caption and the description of each picture.

  texts: for every picture its description and one or more captions, of which
  one is drawn. Returns ids, mask, target and target_mask, all [n, length].
  """
  captions = [of[rng.integers(1, len(of))] for of in texts]
  return *tokenizer(captions), *tokenizer([of[0] for of in texts])


def describe_loss(
  model: Describer,
  params: Any,
  ids: jax.Array,
  mask: jax.Array,
  target: jax.Array,
  target_mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """(cross-entropy in nats, accuracy) per real token of the target [B, L]."""
  logits = model.apply({"params": params}, ids, mask, target)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  right = logits.argmax(-1) == target
  count = target_mask.sum()
  return (loss * target_mask).sum() / count, (right * target_mask).sum() / count
