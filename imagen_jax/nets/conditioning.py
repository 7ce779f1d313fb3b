"""Conditioning of a net on noise level, text and low-resolution image."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.nets.layers import (
  attend,
  layer_norm,
  once_per_prompt,
  pin_batch,
  sinusoid,
)
from imagen_jax.types import Conditioning, TextEmbedding


class AttentionPooling(nn.Module):
  """Pools text to one vector by attention (App. F.1).

  The paper names attention pooling and a LayerNorm before it. Not in the paper:
  the query, which is the mean of the real tokens plus a learned vector, as in
  DeepFloyd IF.
  """

  head_dim: int = 64  # channels of a head
  dtype: Any = jnp.float32  # of products

  @nn.compact
  def __call__(self, text: TextEmbedding) -> jax.Array:
    """Pools tokens [B, L, D] to [B, D]; padding has no influence.

    Raises:
      ValueError: if D is above head_dim and not a multiple of it. A smaller D
        has one head.
    """
    dim = text.tokens.shape[-1]
    tokens = layer_norm("norm_in")(text.tokens)
    mean = mean_of_real(tokens, text.mask)[:, None, :]
    mean += self.param("cls_pos", nn.initializers.normal(0.02), (1, dim))
    keys = pin_batch(jnp.concatenate([mean, tokens], axis=1))
    mask = jnp.pad(text.mask, ((0, 0), (1, 0)), constant_values=True)
    head_dim = min(self.head_dim, dim)
    if dim % head_dim:
      raise ValueError(
        f"text of width {dim} cannot be pooled by heads of {head_dim}, "
        "expected a multiple"
      )
    heads = (dim // head_dim, head_dim)
    query, key, value = (
      pin_batch(nn.DenseGeneral(heads, dtype=self.dtype, name=name)(source))
      for name, source in (("query", mean), ("key", keys), ("value", keys))
    )
    pooled = attend(query, key, value, mask)
    return pooled.reshape(pooled.shape[0], -1)


class MeanPooling(nn.Module):
  """Pools text to one vector, the mean of the real tokens (App. D.3.1)."""

  dtype: Any = jnp.float32  # unused; AttentionPooling has it too

  @nn.compact
  def __call__(self, text: TextEmbedding) -> jax.Array:
    """Pools tokens [B, L, D] to [B, D]; padding has no influence."""
    return mean_of_real(layer_norm("norm_in")(text.tokens), text.mask)


def mean_of_real(tokens: jax.Array, mask: jax.Array) -> jax.Array:
  """Averages tokens [B, L, D] where mask [B, L]; zeros if none is real."""
  weight = mask[..., None].astype(tokens.dtype)
  return (tokens * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)


def text_pooling(
  feature_pooling_type: str, head_dim: int, dtype: Any
) -> nn.Module:
  """Returns the pooling module that App. F's `feature_pooling_type` names."""
  kinds = {
    "attention": partial(AttentionPooling, head_dim),
    "mean": MeanPooling,
  }
  if feature_pooling_type not in kinds:
    raise ValueError(
      f"feature_pooling_type is {feature_pooling_type!r}, expected one of "
      f"{', '.join(map(repr, kinds))}"
    )
  return kinds[feature_pooling_type](dtype=dtype, name="text_pool")


class LevelEmbedding(nn.Module):
  """Embeds one number per example in [0, 1000]: sinusoid and two-layer MLP."""

  features: int  # of the sinusoid
  width: int  # of the embedding
  activation: Callable[[jax.Array], jax.Array] = nn.swish
  dtype: Any = jnp.float32  # of products

  @nn.compact
  def __call__(self, level: jax.Array) -> jax.Array:
    """Embeds level [B] to [B, width]."""
    h = sinusoid(level, self.features)
    h = nn.Dense(self.width, dtype=self.dtype, name="dense_0")(h)
    h = self.activation(h)
    return nn.Dense(self.width, dtype=self.dtype, name="dense_1")(h)


class CombineEmbs(nn.Module):
  """Combines the embeddings that modulate every residual block.

  They are the timestep embedding, the pooled text (Sec. 2.5) and, in
  super-resolution nets, the embedding of the augmentation level (Sec. 2.4). Not
  in the paper, which states none: the widths, the norm after the pooled text
  (as in DeepFloyd IF), and the embedding of 1000 times the level, like a time.
  """

  features: int  # of the sinusoids
  width: int  # of the embedding
  feature_pooling_type: str  # "attention" or "mean"
  pool_head_channels: int = 64  # channels of a head of attention pooling
  activation: Callable[[jax.Array], jax.Array] = nn.swish
  dtype: Any = jnp.float32  # of products

  def pooled(self, text: TextEmbedding) -> jax.Array:
    """Returns the pooled text, projected and normalised, [B, width]."""
    pooled = text_pooling(
      self.feature_pooling_type, self.pool_head_channels, self.dtype
    )(text)
    pooled = nn.Dense(self.width, dtype=self.dtype, name="text_proj")(pooled)
    return layer_norm("text_norm_out")(pooled)

  @nn.compact
  def __call__(self, time: jax.Array, cond: Conditioning) -> jax.Array:
    """Returns the activated sum of the embeddings [B, width].

    time is [B] in [0, 1000].
    """
    level = (self.features, self.width, self.activation, self.dtype)
    emb = LevelEmbedding(*level, name="time_mlp")(time)
    if cond.aug_level is not None:
      aug = LevelEmbedding(*level, name="aug_mlp")(1000.0 * cond.aug_level)
      emb = emb + aug
    if cond.text is not None:
      emb = emb + once_per_prompt(
        self, "pooled", lambda: self.pooled(cond.text)
      )
    return pin_batch(self.activation(emb.astype(jnp.float32)))


class ProjectText(nn.Module):
  """Projects the encoder's tokens once for all attention layers.

  Not in the paper, which does not state how the text's width is changed.
  """

  width: int  # of the projected tokens
  dtype: Any = jnp.float32  # of products

  @nn.compact
  def __call__(self, text: TextEmbedding | None) -> TextEmbedding | None:
    """Projects tokens [B, L, D] to [B, L, width]; None stays None."""
    if text is None:
      return None
    tokens = once_per_prompt(
      self,
      "tokens",
      lambda: nn.Dense(self.width, dtype=self.dtype, name="dense")(text.tokens),
    )
    return text.replace(tokens=pin_batch(tokens))


def with_lowres(z: jax.Array, lowres: jax.Array | None) -> jax.Array:
  """Concatenates z [B, H, W, C] and bicubically upsampled lowres on channels.

  Not in the paper, which does not state how the net takes lowres. Without
  lowres it returns z.
  """
  if lowres is None:
    return z
  shape = (*z.shape[:3], lowres.shape[-1])
  return jnp.concatenate([z, jax.image.resize(lowres, shape, "cubic")], -1)
