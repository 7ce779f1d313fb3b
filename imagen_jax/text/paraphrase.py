"""A text encoder's training on captions alone: to say them in other words.

T5 learns from text with a decoder that reads the encoder's tokens, and all
that the decoder is to know must be in them (Raffel et al. 2020). Here it writes
another caption of the same picture. It has one layer, so it cannot work out
what belongs together: for "a [...] square below two circles" the token "blue"
of the first caption must itself tell that it is the lower square's.

(Words that an encoder guesses in place of hidden ones teach it less: what it
makes of the words it sees is then nowhere asked for.)
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.text.tokenizer import Tokenizer


class Paraphraser(nn.Module):
  """The encoder and a decoder of one layer, which is thrown away later."""

  encoder: T5Encoder

  @nn.compact
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
    return table.attend(nn.RMSNorm()(x)) * dim**-0.5


def pair(
  tokenizer: Tokenizer,
  captions: Sequence[Sequence[str]],
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Two different captions of each picture: ids, mask, target, target_mask.

  captions: for every picture, at least two. All are [n, length].
  """
  drawn = [rng.choice(len(texts), 2, replace=False) for texts in captions]
  sides = [
    tokenizer([texts[i[side]] for texts, i in zip(captions, drawn)])
    for side in (0, 1)
  ]
  return *sides[0], *sides[1]


def paraphrase_loss(
  model: Paraphraser,
  params: Any,
  ids: jax.Array,
  mask: jax.Array,
  target: jax.Array,
  target_mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """(cross-entropy in nats, accuracy) per real token of the target [B, L].

  Neither can be perfect: how a caption goes on is in part a matter of taste.
  """
  logits = model.apply({"params": params}, ids, mask, target)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  right = logits.argmax(-1) == target
  count = target_mask.sum()
  return (loss * target_mask).sum() / count, (right * target_mask).sum() / count
