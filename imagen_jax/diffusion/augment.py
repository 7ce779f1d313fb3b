"""Conditioning augmentation of a low-resolution image (Sec. 2.4, Fig. A.32)."""

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.gaussian import noise, per_example, q_sample
from imagen_jax.diffusion.schedules import CosineSchedule, Schedule


def augment(
  keys: jax.Array,
  lowres: jax.Array,
  aug_level: jax.Array,
  schedule: Schedule = CosineSchedule(),
) -> jax.Array:
  """Returns alpha(a) lowres + sigma(a) eps, at the resolution of lowres.

  Level a = 0 returns lowres bit for bit.

  Args:
    keys: typed PRNG keys [B], of the noise eps.
    lowres: float [B, h, w, C] in [-1, 1].
    aug_level: a, float [B] in [0, 1].
    schedule: the noise schedule of a. Not in the paper: the cosine schedule,
      since the paper names none.
  """
  eps = noise(keys, lowres.shape[1:])
  noised = q_sample(lowres, eps, schedule(aug_level))
  # The schedule's clip leaves a little noise at a = 0.
  return jnp.where(per_example(aug_level, lowres) == 0, lowres, noised)


def bilinear_aligned(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Resizes x [B, h, w, C] to [B, *shape, C], bilinearly, with aligned corners.

  Output pixel i of n reads position i (m - 1) / (n - 1) of m input pixels.
  DeepFloyd IF upsamples its low-resolution image this way.
  """
  x = jnp.asarray(x, jnp.float32)
  for axis, n in ((1, shape[0]), (2, shape[1])):
    last = x.shape[axis] - 1
    # Integers: rounding must not choose between two neighbours.
    low, rest = jnp.divmod(jnp.arange(n) * last, max(n - 1, 1))
    share = (rest / max(n - 1, 1)).reshape(-1, *[1] * (3 - axis))
    left = jnp.take(x, low, axis)
    right = jnp.take(x, jnp.minimum(low + 1, last), axis)
    x = left + share * (right - left)
  return x
