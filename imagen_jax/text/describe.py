"""Text-only pretraining of a text encoder, from captions to descriptions.

T5's decoder reads the text only through the encoder's output tokens (Raffel et
al. 2020, arXiv 1910.10683). So these tokens must hold all that the decoder
needs. Here the decoder writes a description of the caption in a fixed order,
beginning with the group at the top. It has one layer, too few to work out which
words belong together. In "two blue circles below a square" the encoder's token
"blue" must itself hold that blue is at the bottom.

Not in the paper: it uses a published T5. Predicting masked words or paraphrased
captions did not teach an encoder which words belong together. All but one or
two words can be predicted without it.
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
  """An encoder with a one-layer decoder, which is discarded after training."""

  encoder: T5Encoder  # the text encoder to train

  @property
  def precision(self) -> str:
    """The encoder's precision of products of float32."""
    return self.encoder.precision

  @nn.compact
  @at_own_precision
  def __call__(
    self, ids: jax.Array, mask: jax.Array, target: jax.Array
  ) -> jax.Array:
    """Predicts each target token from the tokens before it and all of ids.

    Args:
      ids: int32 [B, L], the caption's tokens.
      mask: bool [B, L], True = real token.
      target: int32 [B, L], the description's tokens.

    Returns:
      Logits [B, L, vocabulary].
    """
    dim, heads = self.encoder.emb_dim, self.encoder.num_heads
    attend = lambda name: nn.MultiHeadDotProductAttention(heads, name=name)
    states = self.encoder(ids, mask)
    table = nn.Embed(self.encoder.vocab_size, dim, name="token_embedder")
    before = jnp.pad(target[:, :-1], ((0, 0), (1, 0)))  # pad begins, as in T5
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
  """Tokenizes a random caption and the description of each image.

  Args:
    tokenizer: encodes both.
    texts: for each of n images its description, then one or more captions.
    rng: draws one of the captions.

  Returns:
    ids, mask, target and target_mask, all [n, length].
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
  """Computes (cross-entropy in nats, accuracy) per real target token."""
  logits = model.apply({"params": params}, ids, mask, target)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  right = logits.argmax(-1) == target
  count = target_mask.sum()
  return (loss * target_mask).sum() / count, (right * target_mask).sum() / count
