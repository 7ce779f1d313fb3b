"""The encoder of T5 v1.1 (Raffel et al. 2020; Shazeer 2020, gated GELU).

The parameter tree has t5x's names and shapes, so that a published checkpoint is
read leaf by leaf. Masking follows the published PyTorch port: padding is masked
as a key and not as a query. Outputs at real tokens do not depend on that
choice. Outputs at padding do, and some diffusion models read them.

Unlike other transformers, T5 does not scale its embeddings, and its attention
has no factor 1 / sqrt(head_dim). The initial query kernel is smaller by that
factor instead.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.nets.blocks import run_blocks
from imagen_jax.nets.int8 import Int8Dense
from imagen_jax.nets.layers import at_own_precision, pin_batch
from imagen_jax.types import SpecialIds

_KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_MLP_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_RELPOS_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def float_dense(features, dtype, name, init) -> nn.Module:
  """Returns a dense layer with float weights, which can be trained."""
  return nn.Dense(
    features, use_bias=False, dtype=dtype, kernel_init=init, name=name
  )


def int8_dense(features, dtype, name, _) -> nn.Module:
  """Returns a dense layer with one byte per weight, which cannot be trained."""
  return Int8Dense(features, dtype, name=name)


class T5Encoder(nn.Module):
  """Encodes ids [B, L] int under mask [B, L] bool (True = real token).

  Norms, softmax and the residual stream are float32. Deep encoders need it:
  their activations grow into the thousands.
  """

  special = SpecialIds(before=(), after=1, pad=0, unknown=2)
  max_length = None  # positions are relative

  vocab_size: int  # rows of the embedding table
  emb_dim: int  # width of a token
  num_heads: int
  num_encoder_layers: int
  head_dim: int  # channels of a head
  mlp_dim: int  # hidden width of the MLP
  relpos_buckets: int = 32  # buckets of relative positions, for both signs
  relpos_max_distance: int = 128  # tokens, from which on the bucket is the last
  scan: bool = False  # whether the layers are compiled as one loop
  dtype: jnp.dtype = jnp.float32  # of the matrix products
  dense: Callable = float_dense  # makes a dense layer; or int8_dense
  # Of products of float32: "highest" does not round the factors. "high" and
  # "default" are faster on TPUs and GPUs, and less exact.
  precision: str = "highest"

  @nn.compact
  @at_own_precision
  def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the encoded tokens, float32 [B, L, emb_dim]."""
    x = TokenEmbedder(self.vocab_size, self.emb_dim, name="token_embedder")(ids)
    return Encoder(
      num_heads=self.num_heads,
      num_layers=self.num_encoder_layers,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      relpos_buckets=self.relpos_buckets,
      relpos_max_distance=self.relpos_max_distance,
      scan=self.scan,
      dtype=self.dtype,
      dense=self.dense,
      name="encoder",
    )(pin_batch(x), mask)


class TokenEmbedder(nn.Module):
  """Looks up embedding[ids], unscaled."""

  vocab_size: int
  emb_dim: int

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    """Embeds ids [B, L] to float32 [B, L, emb_dim]."""
    table = self.param(
      "embedding",
      nn.initializers.normal(1.0),
      (self.vocab_size, self.emb_dim),
    )
    # An id outside the vocabulary gives NaN, not the row of another id.
    return jnp.take(table, ids, axis=0, mode="fill").astype(jnp.float32)


class Encoder(nn.Module):
  """Runs the layers and the final norm. Fields are as in T5Encoder."""

  num_heads: int
  num_layers: int
  head_dim: int
  mlp_dim: int
  relpos_buckets: int
  relpos_max_distance: int
  scan: bool
  dtype: jnp.dtype
  dense: Callable

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps x [B, L, D] under mask [B, L] to [B, L, D]."""
    bias = RelativePositionBias(
      num_heads=self.num_heads,
      num_buckets=self.relpos_buckets,
      max_distance=self.relpos_max_distance,
      name="relpos_bias",
    )(x.shape[1])
    layers = [
      EncoderLayer(
        num_heads=self.num_heads,
        head_dim=self.head_dim,
        mlp_dim=self.mlp_dim,
        dtype=self.dtype,
        dense=self.dense,
        name=f"layers_{i}",
      )
      for i in range(self.num_layers)
    ]
    step = lambda unit, x, _: (pin_batch(unit[0](x, bias, mask)), None)
    x, _ = run_blocks(step, [(layer,) for layer in layers], x, scan=self.scan)
    return RMSNorm(name="encoder_norm")(x)


class EncoderLayer(nn.Module):
  """Computes x += attention(norm(x)), x += mlp(norm(x)), the sums in float32.

  Fields are as in T5Encoder.
  """

  num_heads: int
  head_dim: int
  mlp_dim: int
  dtype: jnp.dtype
  dense: Callable

  @nn.compact
  def __call__(
    self, x: jax.Array, bias: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """Maps x [B, L, D], bias [heads, L, L] and mask [B, L] to [B, L, D]."""
    h = RMSNorm(name="pre_attention_layer_norm")(x)
    x += SelfAttention(
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      dtype=self.dtype,
      dense=self.dense,
      name="attention",
    )(h, bias, mask)
    h = RMSNorm(name="pre_mlp_layer_norm")(x)
    return x + GatedMLP(self.mlp_dim, self.dtype, self.dense, name="mlp")(h)


class SelfAttention(nn.Module):
  """Computes softmax(q k^T + bias) v over the keys where mask [B, L] is True.

  Fields are as in T5Encoder.
  """

  num_heads: int
  head_dim: int
  dtype: jnp.dtype
  dense: Callable

  @nn.compact
  def __call__(
    self, x: jax.Array, bias: jax.Array, mask: jax.Array
  ) -> jax.Array:
    """Maps x [B, L, D], bias [heads, L, L] and mask [B, L] to [B, L, D]."""
    q = self._heads(x, "query", _query_init(self.head_dim))
    k = self._heads(x, "key", _KERNEL_INIT)
    v = self._heads(x, "value", _KERNEL_INIT)
    logits = jnp.einsum(
      "bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32
    )
    # Finite, so that a row without a single real key averages all keys.
    lowest = jnp.finfo(jnp.float32).min
    keep = mask[:, None, None, :].astype(bool)
    weights = nn.softmax(jnp.where(keep, logits + bias, lowest))
    y = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(self.dtype), v)
    y = y.reshape(*y.shape[:2], -1)
    return self.dense(x.shape[-1], self.dtype, "out", _KERNEL_INIT)(y)

  def _heads(self, x, name, init):
    """Projects to [B, L, heads, head_dim]; the kernel joins the heads."""
    joined = self.num_heads * self.head_dim
    y = pin_batch(self.dense(joined, self.dtype, name, init)(x))
    return y.reshape(*y.shape[:2], self.num_heads, self.head_dim)


class GatedMLP(nn.Module):
  """Computes wo(gelu(wi_0 x) * wi_1 x), with the tanh form of GELU.

  Fields are as in T5Encoder.
  """

  mlp_dim: int
  dtype: jnp.dtype
  dense: Callable

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps x [B, L, D] to [B, L, D]."""
    gate = self.dense(self.mlp_dim, self.dtype, "wi_0", _MLP_INIT)(x)
    h = self.dense(self.mlp_dim, self.dtype, "wi_1", _MLP_INIT)(x)
    h = pin_batch(h * nn.gelu(gate, approximate=True))
    return self.dense(x.shape[-1], self.dtype, "wo", _MLP_INIT)(h)


class RMSNorm(nn.Module):
  """Computes scale * x / sqrt(mean(x^2) + 1e-6) in float32.

  It subtracts no mean and adds no bias.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x [..., D] over its last axis."""
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    x *= jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return x * scale.astype(jnp.float32)


class RelativePositionBias(nn.Module):
  """Holds one learned number per head and bucket of relative positions."""

  num_heads: int
  num_buckets: int
  max_distance: int

  @nn.compact
  def __call__(self, length: int) -> jax.Array:
    """Returns the bias, float32 [heads, length, length]."""
    table = self.param(
      "rel_embedding", _RELPOS_INIT, (self.num_heads, self.num_buckets)
    )
    position = np.arange(length)
    buckets = relative_position_bucket(
      position[None, :] - position[:, None],
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    return table.astype(jnp.float32)[:, buckets]


def relative_position_bucket(
  offset: np.ndarray, *, num_buckets: int, max_distance: int
) -> np.ndarray:
  """Returns the bucket of an offset, in [0, num_buckets).

  The offset is the key's position minus the query's position. Each sign has
  half of the buckets; keys after the query have the upper half. In each half,
  the first half of the buckets holds one distance each. The remaining buckets
  are log-spaced up to max_distance. The last one holds all distances beyond.
  """
  per_sign = num_buckets // 2
  exact = per_sign // 2
  distance = np.abs(offset)
  octave = np.log(np.maximum(distance, exact) / exact)
  octave *= (per_sign - exact) / np.log(max_distance / exact)
  # 1e-9 keeps distances on a boundary (16, 32, 64) in the bucket above it.
  far = np.minimum(exact + np.floor(octave + 1e-9), per_sign - 1)
  bucket = np.where(distance < exact, distance, far).astype(np.int32)
  return np.where(offset > 0, per_sign + bucket, bucket)


def _query_init(head_dim: int) -> nn.initializers.Initializer:
  """Returns the kernel initialiser that includes 1 / sqrt(head_dim)."""
  return nn.initializers.variance_scaling(1.0 / head_dim, "fan_in", "normal")
