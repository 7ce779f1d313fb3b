"""The encoder of T5 v1.1 (Raffel et al. 2020; Shazeer 2020, gated GELU).

The parameter tree has the names and shapes in which t5x stores it, so that a
published checkpoint is read leaf by leaf. Masking follows the published
PyTorch port: padding is hidden as a key and left alone as a query. Real tokens
do not depend on that choice, but the outputs at padding do, and there are
diffusion models that read them.

Nothing grows or shrinks a sum here as other transformers do: embeddings are
not scaled and attention has no 1 / sqrt(head_dim); the initial query kernel is
that much smaller instead.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.nets.blocks import in_turn
from imagen_jax.nets.int8 import Int8Dense
from imagen_jax.nets.layers import at_own_precision, pin_batch

_KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
_MLP_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_RELPOS_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def float_dense(features, dtype, name, init) -> nn.Module:
  """A product with floats, which may be trained."""
  return nn.Dense(
    features, use_bias=False, dtype=dtype, kernel_init=init, name=name
  )


def int8_dense(features, dtype, name, _) -> nn.Module:
  """The same with a byte per weight, which may not."""
  return Int8Dense(features, dtype, name=name)


class T5Encoder(nn.Module):
  """ids [B, L] int, mask [B, L] bool (True = real) -> [B, L, emb_dim] float32.

  dtype is that of the matrix products; norms, softmax and the residual stream
  are float32, which the deep encoders need: their activations grow into the
  thousands. precision: "highest" multiplies float32 as such; "high" and
  "default" are faster on TPUs and GPUs, and less exact. With scan, the layers
  are compiled as one loop. dense: how the kernels are kept, float_dense or
  int8_dense.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  num_encoder_layers: int
  head_dim: int
  mlp_dim: int
  relpos_buckets: int = 32
  relpos_max_distance: int = 128
  scan: bool = False
  dtype: jnp.dtype = jnp.float32
  dense: Callable = float_dense
  precision: str = "highest"

  @nn.compact
  @at_own_precision
  def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
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
  """ids [B, L] -> embedding[ids] as float32 [B, L, emb_dim], unscaled."""

  vocab_size: int
  emb_dim: int

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    table = self.param(
      "embedding",
      nn.initializers.normal(1.0),
      (self.vocab_size, self.emb_dim),
    )
    # An id outside the vocabulary gives NaN rather than somebody else's row.
    return jnp.take(table, ids, axis=0, mode="fill").astype(jnp.float32)


class Encoder(nn.Module):
  """The blocks and the final norm: x [B, L, D], mask [B, L] -> [B, L, D]."""

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
    x, _ = in_turn(step, [(layer,) for layer in layers], x, scan=self.scan)
    return RMSNorm(name="encoder_norm")(x)


class EncoderLayer(nn.Module):
  """x += attention(norm(x)); x += mlp(norm(x)), the sums in float32."""

  num_heads: int
  head_dim: int
  mlp_dim: int
  dtype: jnp.dtype
  dense: Callable

  @nn.compact
  def __call__(
    self, x: jax.Array, bias: jax.Array, mask: jax.Array
  ) -> jax.Array:
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
  """softmax(q k^T + bias) v over the keys where mask [B, L] is True."""

  num_heads: int
  head_dim: int
  dtype: jnp.dtype
  dense: Callable

  @nn.compact
  def __call__(
    self, x: jax.Array, bias: jax.Array, mask: jax.Array
  ) -> jax.Array:
    q = self._heads(x, "query", _query_init(self.head_dim))
    k = self._heads(x, "key", _KERNEL_INIT)
    v = self._heads(x, "value", _KERNEL_INIT)
    logits = jnp.einsum(
      "bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32
    )
    # Finite, so that a row without a single real key averages all of them.
    lowest = jnp.finfo(jnp.float32).min
    keep = mask[:, None, None, :].astype(bool)
    weights = nn.softmax(jnp.where(keep, logits + bias, lowest))
    y = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(self.dtype), v)
    y = y.reshape(*y.shape[:2], -1)
    return self.dense(x.shape[-1], self.dtype, "out", _KERNEL_INIT)(y)

  def _heads(self, x, name, init):
    """Projects to [B, L, heads, head_dim]; the kernel has the heads joined."""
    joined = self.num_heads * self.head_dim
    y = pin_batch(self.dense(joined, self.dtype, name, init)(x))
    return y.reshape(*y.shape[:2], self.num_heads, self.head_dim)


class GatedMLP(nn.Module):
  """wo(gelu(wi_0 x) * wi_1 x), with the tanh form of GELU."""

  mlp_dim: int
  dtype: jnp.dtype
  dense: Callable

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    gate = self.dense(self.mlp_dim, self.dtype, "wi_0", _MLP_INIT)(x)
    h = self.dense(self.mlp_dim, self.dtype, "wi_1", _MLP_INIT)(x)
    h = pin_batch(h * nn.gelu(gate, approximate=True))
    return self.dense(x.shape[-1], self.dtype, "wo", _MLP_INIT)(h)


class RMSNorm(nn.Module):
  """scale * x / sqrt(mean(x^2) + 1e-6), in float32; no mean, no bias."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    x *= jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return x * scale.astype(jnp.float32)


class RelativePositionBias(nn.Module):
  """One learned number per head and bucket: length -> [heads, L, L] float32."""

  num_heads: int
  num_buckets: int
  max_distance: int

  @nn.compact
  def __call__(self, length: int) -> jax.Array:
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
  """Bucket in [0, num_buckets) of offset = key position - query position.

  Half of the buckets for each sign (keys after the query take the upper half).
  Within a half, the first half holds one distance each; the rest are log-spaced
  up to max_distance, and the last one holds all that is further away.
  """
  per_sign = num_buckets // 2
  exact = per_sign // 2
  distance = np.abs(offset)
  octave = np.log(np.maximum(distance, exact) / exact)
  octave *= (per_sign - exact) / np.log(max_distance / exact)
  # The nudge keeps distances that lie on a boundary (16, 32, 64) above it.
  far = np.minimum(exact + np.floor(octave + 1e-9), per_sign - 1)
  bucket = np.where(distance < exact, distance, far).astype(np.int32)
  return np.where(offset > 0, per_sign + bucket, bucket)


def _query_init(head_dim: int) -> nn.initializers.Initializer:
  """The kernel's initialiser with the attention's 1 / sqrt(head_dim) in it."""
  return nn.initializers.variance_scaling(1.0 / head_dim, "fan_in", "normal")
