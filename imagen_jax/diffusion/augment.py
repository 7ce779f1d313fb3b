"""Conditioning augmentation of the low-resolution image (Sec. 2.4, A.32)."""

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
  """alpha(a) lowres + sigma(a) eps, at the resolution that lowres has.

  keys [B]; lowres [B, h, w, C]; aug_level a [B] in [0, 1]. The paper does not
  name the schedule of a: cosine is ours. a = 0 gives lowres, bit for bit.
  """
  eps = noise(keys, lowres.shape[1:])
  noised = q_sample(lowres, eps, schedule(aug_level))
  # The schedule's clip leaves a little noise at a = 0.
  return jnp.where(per_example(aug_level, lowres) == 0, lowres, noised)


def bilinear_aligned(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """x [B, h, w, C] -> [B, *shape, C], bilinear, corners on corners.

  Pixel i of n is read at i (m - 1) / (n - 1) of m. So DeepFloyd IF enlarges
  the low-res picture.
  """
  x = jnp.asarray(x, jnp.float32)
  for axis, n in ((1, shape[0]), (2, shape[1])):
    last = x.shape[axis] - 1
    # In whole numbers, so that no rounding chooses between two neighbours.
    low, rest = jnp.divmod(jnp.arange(n) * last, max(n - 1, 1))
    share = (rest / max(n - 1, 1)).reshape(-1, *[1] * (3 - axis))
    left = jnp.take(x, low, axis)
    right = jnp.take(x, jnp.minimum(low + 1, last), axis)
    x = left + share * (right - left)
  return x
