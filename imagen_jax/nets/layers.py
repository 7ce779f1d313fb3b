"""Layers that both U-Nets share: norms, attention, resampling, sinusoids."""

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


# The values of a net's `precision`, which concerns products of float32 alone.
PRECISIONS = ("highest", "high", "default")


def at_own_precision(call: Callable[..., Any]) -> Callable[..., Any]:
  """Decorates a net's __call__ to run its products at the net's `precision`.

  By default TPUs round factors of float32 to bfloat16, and GPUs to TF32. JAX
  keeps the precision with each product, for its gradient too.
  """

  @functools.wraps(call)
  def within(self: nn.Module, *args: Any) -> Any:
    with jax.default_matmul_precision(self.precision):
      return call(self, *args)

  return within


def once_per_prompt(module: nn.Module, name: str, fn: Callable[[], Any]):
  """Returns fn(), which depends on the text alone, from a cache if it can.

  `net.apply(variables, ..., mutable=["text"])` fills the collection "text". An
  apply that is given that collection reads the value from it. A sampling loop
  thus computes its text keys, values and pooling once.
  """
  if module.has_variable("text", name):
    return module.get_variable("text", name)
  value = fn()
  if module.is_mutable_collection("text") and not module.is_initializing():
    module.put_variable("text", name, value)
  return value


def pin_batch(x: jax.Array) -> jax.Array:
  """Shards the rows of x [B, ...] over the mesh as the batch is sharded.

  It is applied to inputs and outputs of layers. Otherwise the compiler may
  shard channels as the weights are sharded, and all-gather the batch. Without a
  mesh, or if the devices do not divide B, it returns x.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  axes = tuple(name for name in BATCH_AXES if sizes.get(name, 1) > 1)
  if not axes or x.shape[0] % math.prod(sizes[name] for name in axes):
    return x
  others = [P.UNCONSTRAINED] * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, P(axes, *others))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise_groups(
  x: jax.Array, scale: jax.Array, shift: jax.Array, groups: int
) -> jax.Array:
  """Computes scale (x - mean) / sqrt(var + 1e-5) + shift in float32.

  Mean and variance are over an example's pixels and C / groups channels. They
  take two passes: one pass, E[x^2] - E[x]^2, loses the variance of values far
  from zero. The gradient is written out, because it needs only two sums over
  pixels. The derived one has five, and takes more time than the convolutions
  beside it on a CPU.

  Args:
    x: [B, ..., C].
    scale: float32 [B, C].
    shift: float32 [B, C].
    groups: the number of groups, a divisor of C.

  Returns:
    float32, like x.
  """
  return _normalise(x, scale, shift, groups)[0]


def _normalise(x: jax.Array, scale: jax.Array, shift: jax.Array, groups: int):
  """Returns the result, and what its gradient needs."""
  wide = x.astype(jnp.float32)
  pixels, size = tuple(range(1, x.ndim - 1)), math.prod(x.shape[1:]) // groups
  mean = _of_group(wide.sum(pixels), groups) / size
  apart = wide - _over_pixels(mean, x)
  var = _of_group(jnp.square(apart).sum(pixels), groups) / size
  inverse = jax.lax.rsqrt(var + 1e-5)
  y = apart * _over_pixels(inverse * scale, x) + _over_pixels(shift, x)
  return y, (x, scale, mean, inverse)


def _normalise_gradient(groups: int, kept: Any, dy: jax.Array):
  """Returns the gradients of x, scale and shift."""
  x, scale, mean, inverse = kept
  pixels, size = tuple(range(1, x.ndim - 1)), math.prod(x.shape[1:]) // groups
  apart = x.astype(jnp.float32) - _over_pixels(mean, x)
  d_shift = dy.sum(pixels)
  d_scale = (dy * apart).sum(pixels) * inverse
  # The parts of dx that come from the mean and from the variance.
  by_mean = inverse * _of_group(d_shift * scale, groups) / size
  by_var = inverse**2 * _of_group(d_scale * scale, groups) / size
  dx = dy * _over_pixels(inverse * scale, x)
  dx -= _over_pixels(by_mean, x) + apart * _over_pixels(by_var, x)
  return dx.astype(x.dtype), d_scale, d_shift


normalise_groups.defvjp(_normalise, _normalise_gradient)


def _of_group(sums: jax.Array, groups: int) -> jax.Array:
  """Returns for each channel of [B, C] the sum over its group's channels."""
  grouped = sums.reshape(sums.shape[0], groups, -1)
  total = grouped.sum(-1, keepdims=True)
  return jnp.broadcast_to(total, grouped.shape).reshape(sums.shape)


def _over_pixels(values: jax.Array, x: jax.Array) -> jax.Array:
  """Reshapes [B, C] to [B, 1, ..., C], as many axes as x has."""
  batch, channels = values.shape
  return values.reshape(batch, *(1,) * (x.ndim - 2), channels)


class GroupNorm(nn.Module):
  """Normalises groups of channels, as flax's GroupNorm does in float32."""

  groups: int  # of channels

  @nn.compact
  def __call__(
    self, x: jax.Array, modulation: tuple[jax.Array, jax.Array] | None = None
  ) -> jax.Array:
    """Returns the normalised x [B, ..., C] in float32.

    Args:
      x: [B, ..., C].
      modulation: (scale, shift), float32 [B, C] each, which are applied to the
        result as result (1 + scale) + shift. None applies neither.

    Raises:
      ValueError: the groups do not divide C.
    """
    batch, channels = x.shape[0], x.shape[-1]
    if channels % self.groups:
      raise ValueError(
        f"norm_groups is {self.groups}, expected a divisor of {channels}, the"
        " channels of a layer"
      )
    ones = nn.initializers.ones_init()
    scale, shift = (
      jnp.broadcast_to(
        self.param(name, init, (channels,), jnp.float32), (batch, channels)
      ).astype(jnp.float32)
      for name, init in (("scale", ones), ("bias", zeros))
    )
    if modulation is not None:
      factor = 1 + modulation[0]
      scale, shift = scale * factor, shift * factor + modulation[1]
    return normalise_groups(x, scale, shift, self.groups)


def group_norm(groups: int, name: str | None = None) -> GroupNorm:
  """Returns a GroupNorm with float32 statistics and a float32 result."""
  return GroupNorm(groups, name=name)


def adaptive_norm(
  h: jax.Array, emb: jax.Array, groups: int, dtype: Any
) -> jax.Array:
  """Computes GroupNorm(h) (1 + scale) + shift (App. F, `use_scale_shift_norm`).

  scale and shift are projections of emb [B, E], applied in float32 like the
  norm. Call it in a block's compact method: it makes the block's norm_1 and
  emb_proj.
  """
  emb = nn.Dense(2 * h.shape[-1], dtype=dtype, name="emb_proj")(emb)
  scale, shift = jnp.split(emb.astype(jnp.float32), 2, axis=-1)
  return group_norm(groups, "norm_1")(h, (scale, shift))


def layer_norm(name: str | None = None) -> nn.LayerNorm:
  """Returns a LayerNorm over features, with statistics as in `group_norm`."""
  return nn.LayerNorm(
    epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False, name=name
  )


def text_group_norm(name: str | None = None) -> nn.GroupNorm:
  """Returns a GroupNorm over all tokens and 1/32 of the features.

  DeepFloyd IF has it. The statistics include padding, whatever the mask is.
  """
  return group_norm(32, name)


def gelu(x: jax.Array) -> jax.Array:
  """Computes x Phi(x), exactly; Phi is the Gaussian's distribution function."""
  return jax.nn.gelu(x, approximate=False)


def sinusoid(level: jax.Array, dim: int, max_period: float = 1e4) -> jax.Array:
  """Returns [cos, sin] features [B, dim] of level [B] in [0, 1000]."""
  half = dim // 2
  frequency = jnp.exp(-jnp.log(max_period) * jnp.arange(half) / half)
  angle = level.astype(jnp.float32)[:, None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def downsample(x: jax.Array) -> jax.Array:
  """Averages x [B, H, W, C] over 2x2 windows."""
  return nn.avg_pool(x, (2, 2), strides=(2, 2))


def upsample(x: jax.Array) -> jax.Array:
  """Upsamples x [B, H, W, C] to [B, 2 H, 2 W, C] by nearest neighbour."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def depth_to_space(x: jax.Array, factor: tuple[int, int]) -> jax.Array:
  """Moves channels to pixels: [B, H, W, fh fw C] to [B, fh H, fw W, C]."""
  batch, height, width, _ = x.shape
  fh, fw = factor
  x = x.reshape(batch, height, width, fh, fw, -1).swapaxes(2, 3)
  return x.reshape(batch, fh * height, fw * width, -1)


def masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Computes a softmax over the last axis in float32.

  A row without a single key gives zeros.
  """
  lowest = jnp.finfo(jnp.float32).min
  logits = jnp.where(mask, logits.astype(jnp.float32), lowest)
  return jax.nn.softmax(logits, axis=-1) * mask


@jax.checkpoint
def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
  """Computes softmax(query key^T / sqrt(d)) value.

  The backward pass computes the maps [B, heads, N, M] again: kept, they were a
  third of what the 2B base net keeps, and they cost 0.3 % of its operations.

  Args:
    query: [B, N, heads, d].
    key: [B, M, heads, d].
    value: [B, M, heads, d].
    mask: bool [B, M], True for keys to attend to.

  Returns:
    [B, N, heads, d], in the dtype of value.
  """
  query = query * query.shape[-1] ** -0.5
  logits = jnp.einsum(
    "bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32
  )
  weights = masked_softmax(logits, mask[:, None, None, :]).astype(value.dtype)
  return jnp.einsum("bhnm,bmhd->bnhd", weights, value)


class Attention(nn.Module):
  """Lets every pixel attend to pixels, to the text, or to both at once.

  Stages 1 and 2 attend to both at once: text keys and values are concatenated
  to the keys and values of self-attention (App. D.3.1). Stage 3 attends to text
  alone, by explicit cross-attention. The text passes a LayerNorm first (Sec.
  2.5).
  """

  num_heads: int
  head_dim: int  # channels of a head
  groups: int  # of GroupNorm
  self_attention: bool = True  # whether pixels attend to pixels
  text_norm: Callable[[str], nn.Module] = layer_norm  # called with its name
  dtype: Any = jnp.float32  # of products

  def heads(self, name: str) -> nn.DenseGeneral:
    """Returns a projection to [..., num_heads, head_dim]."""
    shape = (self.num_heads, self.head_dim)
    return nn.DenseGeneral(shape, dtype=self.dtype, name=name)

  def text_key_value(self, text: TextEmbedding):
    """Returns the text's keys and values, [B, L, num_heads, head_dim] each."""
    tokens = self.text_norm("norm_text")(text.tokens)
    return self.heads("text_key")(tokens), self.heads("text_value")(tokens)

  @nn.compact
  def __call__(self, x: jax.Array, text: TextEmbedding | None) -> jax.Array:
    """Returns x [B, H, W, C] + attention, of the same shape."""
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
