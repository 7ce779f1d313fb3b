"""Classifier-free guidance and thresholding (Secs. 2.2-2.3, Fig. A.31)."""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.gaussian import per_example

_INFINITY = 0x7F800000  # the bits of float32's infinity; NaN has larger ones


def guide(cond: jax.Array, uncond: jax.Array, w: jax.Array) -> jax.Array:
  """Computes w cond + (1 - w) uncond (Eq. 2).

  The paper guides eps. Guiding x_hat or v gives the same result: for one z_t
  every prediction is affine in eps, and the two weights sum to one.

  w is a scalar or [B]; w = 1 is no guidance.
  """
  w = per_example(w, cond)
  return w * cond + (1 - w) * uncond


def within(
  logsnr: jax.Array, interval: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Tests whether log-SNR lie in an interval (low, high), ends included.

  Not in the paper: guidance in an interval (Kynkaanniemi et al. 2024,
  arXiv:2404.07724). Their levels sigma / alpha are exp(-logsnr / 2).
  """
  low, high = interval
  return (low <= logsnr) & (logsnr <= high)


def rescale(guided: jax.Array, cond: jax.Array, phi: jax.Array) -> jax.Array:
  """Computes phi std(cond) / std(guided) guided + (1 - phi) guided.

  Not in the paper: guidance rescale (Lin et al. 2023, arXiv:2305.08891, Eqs.
  15-16). A large w widens the values of x_hat, and this narrows them again.
  The standard deviations are over an example. Unlike guidance, the result
  depends on the space. Here it is x_hat, before the threshold.

  Args:
    guided: x_hat [B, ...] after guidance.
    cond: like guided, x_hat with the prompt.
    phi: a number in [0, 1]; 0 changes nothing.
  """
  axes = tuple(range(1, guided.ndim))
  have, want = (jnp.std(x, axes, keepdims=True) for x in (guided, cond))
  # An example of one colour has no width to change.
  ratio = jnp.where(have > 0, want / jnp.where(have > 0, have, 1.0), 1.0)
  return phi * ratio * guided + (1 - phi) * guided


def static_threshold(x: jax.Array) -> jax.Array:
  """Clips x to [-1, 1]."""
  return jnp.clip(jnp.asarray(x, jnp.float32), -1.0, 1.0)


def dynamic_threshold(
  x: jax.Array, p: float = 99.5, cap: float | None = None
) -> jax.Array:
  """Computes clip(x, -s, s) / s with s = max(1, p-th percentile of |x|).

  Each example has its own s. Apply the threshold after guidance and before the
  sampler (Sec. 2.3).

  Args:
    x: float [B, ...].
    p: the percentile, above 1 and at most 100.
    cap: the largest s, at least 1; None for no limit. DeepFloyd IF has 1.5, and
      1 in its second stage, which makes it the static threshold.

  Raises:
    ValueError: if p or cap is out of range.
  """
  _check_threshold(p, cap)
  x = jnp.asarray(x, jnp.float32)
  s = jnp.clip(percentile_of_abs(x, p), 1.0, cap)
  return jnp.clip(x, -s, s) / s


def percentile_of_abs(x: jax.Array, p: float | jax.Array) -> jax.Array:
  """Computes the p-th percentile of |x| for each example, without a sort.

  The result equals jnp.percentile's, which interpolates linearly. A sort of an
  image's values takes ten times as long. Non-negative floats are ordered like
  their bits, so 31 counts of smaller values find one value's 31 bits.

  Args:
    x: float32 [B, ...].
    p: the percentile, 0 to 100.

  Returns:
    float32 [B, 1, ...]; NaN for an example that contains NaN.
  """
  axes = tuple(range(1, x.ndim))
  last = math.prod(x.shape[1:]) - 1
  rank = jnp.asarray(p, jnp.float32) / 100 * last
  below = jnp.clip(jnp.floor(rank), 0, last)
  above = jnp.clip(jnp.ceil(rank), 0, last)
  bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)
  # Kept axes: [B] would broadcast over the channels when B equals C.
  top = jnp.max(bits, axes, keepdims=True)

  def set_bit(i: jax.Array, low: jax.Array) -> jax.Array:
    higher = low | jnp.left_shift(1, 30 - i)
    smaller = jnp.sum(bits < higher, axes, jnp.int32, keepdims=True)
    return jnp.where(smaller <= below.astype(jnp.int32), higher, low)

  low = jax.lax.fori_loop(0, 31, set_bit, jnp.zeros_like(top))
  # The next value in order is the same one, if enough values equal it.
  upto = jnp.sum(bits <= low, axes, jnp.int32, keepdims=True)
  larger = jnp.where(bits > low, bits, top)
  high = jnp.min(larger, axes, keepdims=True)
  high = jnp.where(upto > above.astype(jnp.int32), low, high)
  low, high = (
    jax.lax.bitcast_convert_type(n, jnp.float32) for n in (low, high)
  )
  s = low * (1 - (rank - below)) + high * (rank - below)
  return jnp.where(top > _INFINITY, jnp.nan, s)


class Threshold(Protocol):
  """A rule that bounds x_hat; a pytree of its numbers."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the thresholded x, float32 like x [B, ...]."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoThreshold:
  """Leaves x as it is."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x in float32."""
    return jnp.asarray(x, jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StaticThreshold:
  """Applies static_threshold."""

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [B, ...] clipped to [-1, 1]."""
    return static_threshold(x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DynamicThreshold:
  """Applies dynamic_threshold with a fixed percentile and cap.

  Attributes:
    p: the percentile of |x|, above 1 and at most 100 (Sec. 2.3).
    cap: the largest scale s, at least 1; None for no limit.
  """

  p: float = 99.5
  cap: float | None = None

  def __post_init__(self):
    _check_threshold(self.p, self.cap)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [B, ...] thresholded, in [-1, 1]."""
    return dynamic_threshold(x, self.p, self.cap)


def _check_threshold(p: float, cap: float | None) -> None:
  """Raises ValueError for a percentile or cap out of range."""
  # Arrays are not checked: they come from a jitted function, whose caller
  # checked the numbers.
  if isinstance(p, int | float) and not 1 < p <= 100:
    raise ValueError(
      f"threshold p is {p}, expected a percentile above 1 and at most 100, such"
      " as 99.5; shares such as 0.995 are 100 times smaller"
    )
  if isinstance(cap, int | float) and not cap >= 1:
    raise ValueError(f"cap is {cap}, expected at least 1, or None")
