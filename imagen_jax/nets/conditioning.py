"""How a net hears of its noise level, its text and its low-res picture."""

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
  """Text -> one vector, by attention from the mean token (App. F.1).

  The paper names attention pooling and a LayerNorm before it; the query (mean
  of the real tokens plus a learned vector) is that of DeepFloyd IF.
  """

  head_dim: int = 64
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text: TextEmbedding) -> jax.Array:
    """tokens [B, L, D] -> [B, D]; padding has no influence.

    D must be a multiple of head_dim, or smaller: then there is one head.
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
  """Text -> one vector, the mean of the real tokens (App. D.3.1)."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text: TextEmbedding) -> jax.Array:
    """tokens [B, L, D] -> [B, D]; padding has no influence."""
    return mean_of_real(layer_norm("norm_in")(text.tokens), text.mask)


def mean_of_real(tokens: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of tokens [B, L, D] where mask [B, L]; zeros if none is real."""
  weight = mask[..., None].astype(tokens.dtype)
  return (tokens * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)


def text_pooling(
  feature_pooling_type: str, head_dim: int, dtype: Any
) -> nn.Module:
  """The pooling module that App. F's `feature_pooling_type` names."""
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
  """Sinusoid and two-layer MLP of one number per example in [0, 1000]."""

  features: int
  width: int
  activation: Callable[[jax.Array], jax.Array] = nn.swish
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, level: jax.Array) -> jax.Array:
    """level [B] -> [B, width]."""
    h = sinusoid(level, self.features)
    h = nn.Dense(self.width, dtype=self.dtype, name="dense_0")(h)
    h = self.activation(h)
    return nn.Dense(self.width, dtype=self.dtype, name="dense_1")(h)


class CombineEmbs(nn.Module):
  """The one vector every residual block is modulated by.

  Time embedding, plus pooled text (Sec. 2.5), plus, in super-resolution
  nets, the embedding of the augmentation level (Sec. 2.4). Ours, for the
  paper is silent: the widths, the norm after the pooled text (as DeepFloyd IF
  has it), and that the level, times 1000, is embedded as the time is.
  """

  features: int
  width: int
  feature_pooling_type: str
  pool_head_channels: int = 64
  activation: Callable[[jax.Array], jax.Array] = nn.swish
  dtype: Any = jnp.float32

  def pooled(self, text: TextEmbedding) -> jax.Array:
    pooled = text_pooling(
      self.feature_pooling_type, self.pool_head_channels, self.dtype
    )(text)
    pooled = nn.Dense(self.width, dtype=self.dtype, name="text_proj")(pooled)
    return layer_norm("text_norm_out")(pooled)

  @nn.compact
  def __call__(self, time: jax.Array, cond: Conditioning) -> jax.Array:
    """time [B] in [0, 1000] -> activated sum of the embeddings [B, width]."""
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
  """The encoder's tokens, projected once for every attention layer (ours)."""

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text: TextEmbedding | None) -> TextEmbedding | None:
    """tokens [B, L, D] -> [B, L, width]; None stays None."""
    if text is None:
      return None
    tokens = once_per_prompt(
      self,
      "tokens",
      lambda: nn.Dense(self.width, dtype=self.dtype, name="dense")(text.tokens),
    )
    return text.replace(tokens=pin_batch(tokens))


def with_lowres(z: jax.Array, lowres: jax.Array | None) -> jax.Array:
  """z [B, H, W, C] and the bicubically enlarged lowres, on channels (ours)."""
  if lowres is None:
    return z
  shape = (*z.shape[:3], lowres.shape[-1])
  return jnp.concatenate([z, jax.image.resize(lowres, shape, "cubic")], -1)
