"""Leaves that both U-Nets share: norms, attention, resampling, features."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from imagen_jax.types import BATCH_AXES, TextEmbedding

zeros = nn.initializers.zeros_init()


# What a net's `precision` may be. It concerns products of float32 alone.
PRECISIONS = ("highest", "high", "default")


def at_own_precision(call: Callable[..., Any]) -> Callable[..., Any]:
  """Decorates a net's __call__: its products have the net's `precision`.

  Left to themselves, TPUs round factors of float32 to bfloat16 and GPUs to
  TF32. JAX keeps the precision with each product, for its gradient too.
  """

  @functools.wraps(call)
  def within(self: nn.Module, *args: Any) -> Any:
    with jax.default_matmul_precision(self.precision):
      return call(self, *args)

  return within


def once_per_prompt(module: nn.Module, name: str, fn: Callable[[], Any]):
  """The value of fn(), which depends on the text alone, kept if asked to.

  `net.apply(variables, ..., mutable=["text"])` fills the collection "text";
  an apply that is given that collection reads it in place of the text, so a
  sampling loop computes its text keys, values and pooling once.
  """
  if module.has_variable("text", name):
    return module.get_variable("text", name)
  value = fn()
  if module.is_mutable_collection("text") and not module.is_initializing():
    module.put_variable("text", name, value)
  return value


def pin_batch(x: jax.Array) -> jax.Array:
  """x [B, ...], its rows spread over the mesh as the batch is.

  Said of what goes into a layer and comes out of it: left to itself the
  compiler may spread channels as the weights are, and gather the batch. Without
  a mesh, or where B does not divide, it is x as it is.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  axes = tuple(name for name in BATCH_AXES if sizes.get(name, 1) > 1)
  if not axes or x.shape[0] % math.prod(sizes[name] for name in axes):
    return x
  others = [P.UNCONSTRAINED] * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, P(axes, *others))


def group_norm(groups: int, name: str | None = None) -> nn.GroupNorm:
  """GroupNorm with float32 statistics in two passes and a float32 result.

  One pass, E[x^2] - E[x]^2, loses the variance of values far from zero.
  """
  return nn.GroupNorm(
    groups,
    epsilon=1e-5,
    dtype=jnp.float32,
    use_fast_variance=False,
    name=name,
  )


def adaptive_norm(
  h: jax.Array, emb: jax.Array, groups: int, dtype: Any
) -> jax.Array:
  """GroupNorm(h) (1 + scale) + shift (App. F's `use_scale_shift_norm`).

  scale and shift are of emb [B, E], and float32 as the norm is. To be called
  in a block's compact method: it makes that block's norm_1 and emb_proj.
  """
  h = group_norm(groups, "norm_1")(h)
  emb = nn.Dense(2 * h.shape[-1], dtype=dtype, name="emb_proj")(emb)
  emb = emb.astype(jnp.float32)[:, None, None, :]
  scale, shift = jnp.split(emb, 2, axis=-1)
  return h * (1 + scale) + shift


def layer_norm(name: str | None = None) -> nn.LayerNorm:
  """LayerNorm over features, its statistics as in `group_norm`."""
  return nn.LayerNorm(
    epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, name=name
  )


def text_group_norm(name: str | None = None) -> nn.GroupNorm:
  """GroupNorm over all tokens and a 32nd of the features (DeepFloyd IF).

  Padding is among those tokens, whatever the mask says.
  """
  return group_norm(32, name)


def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x) with the Gaussian's distribution function Phi, exact."""
  return jax.nn.gelu(x, approximate=False)


def sinusoid(level: jax.Array, dim: int, max_period: float = 1e4) -> jax.Array:
  """[cos, sin] features [B, dim] of level [B], which spans [0, 1000]."""
  half = dim // 2
  frequency = jnp.exp(-jnp.log(max_period) * jnp.arange(half) / half)
  angle = level.astype(jnp.float32)[:, None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def downsample(x: jax.Array) -> jax.Array:
  """Mean over 2x2 windows of x [B, H, W, C]."""
  return nn.avg_pool(x, (2, 2), strides=(2, 2))


def upsample(x: jax.Array) -> jax.Array:
  """Nearest-neighbour enlargement of x [B, H, W, C] to twice its sides."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def depth_to_space(x: jax.Array, factor: tuple[int, int]) -> jax.Array:
  """[B, H, W, fh fw C] -> [B, fh H, fw W, C]: channels become pixels."""
  batch, height, width, _ = x.shape
  fh, fw = factor
  x = x.reshape(batch, height, width, fh, fw, -1).swapaxes(2, 3)
  return x.reshape(batch, fh * height, fw * width, -1)


def masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Softmax over the last axis in float32; a row with no key gives zeros."""
  lowest = jnp.finfo(jnp.float32).min
  logits = jnp.where(mask, logits.astype(jnp.float32), lowest)
  return jax.nn.softmax(logits, axis=-1) * mask


def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
  """softmax(query key^T / sqrt(d)) value.

  query [B, N, heads, d]; key, value [B, M, heads, d]; mask [B, M] bool.
  """
  query = query * query.shape[-1] ** -0.5
  logits = jnp.einsum(
    "bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32
  )
  weights = masked_softmax(logits, mask[:, None, None, :]).astype(value.dtype)
  return jnp.einsum("bhnm,bmhd->bnhd", weights, value)


class Attention(nn.Module):
  """Attention of every pixel to the picture, to the text, or to both at once.

  Both at once is stages 1 and 2 (App. D.3.1: text keys and values are
  concatenated to those of self-attention); text alone is stage 3's explicit
  cross-attention. The text passes a norm first: LayerNorm (Sec. 2.5).
  """

  num_heads: int
  head_dim: int
  groups: int
  self_attention: bool = True
  text_norm: Callable[[str], nn.Module] = layer_norm
  dtype: Any = jnp.float32

  def heads(self, name: str) -> nn.DenseGeneral:
    shape = (self.num_heads, self.head_dim)
    return nn.DenseGeneral(shape, dtype=self.dtype, name=name)

  def text_key_value(self, text: TextEmbedding):
    tokens = self.text_norm("norm_text")(text.tokens)
    return self.heads("text_key")(tokens), self.heads("text_value")(tokens)

  @nn.compact
  def __call__(self, x: jax.Array, text: TextEmbedding | None) -> jax.Array:
    """x [B, H, W, C] -> x + attention, same shape."""
    batch, height, width, channels = x.shape
    pixels = x.reshape(batch, height * width, channels)
    h = group_norm(self.groups, "norm")(pixels)
    query = self.heads("query")(h)
    sources = []
    if self.self_attention:
      everywhere = jnp.ones(pixels.shape[:2], bool)
      sources.append((self.heads("key")(h), self.heads("value")(h), everywhere))
    if text is not None:
      key_value = once_per_prompt(
        self, "key_value", lambda: self.text_key_value(text)
      )
      sources.append((*key_value, text.mask))
    key, value, mask = (
      jnp.concatenate(s, axis=1) for s in zip(*sources, strict=True)
    )
    h = attend(*map(pin_batch, (query, key, value)), mask)
    out = nn.DenseGeneral(
      channels, axis=(-2, -1), dtype=self.dtype, kernel_init=zeros, name="out"
    )
    return pin_batch(x + out(h).reshape(x.shape))
