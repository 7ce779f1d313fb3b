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
  """alpha(a) lowres + sigma(a) eps, at the low resolution, before any resizing.

  keys [B]; lowres [B, h, w, C]; aug_level a [B] in [0, 1]. The paper does not
  name the schedule of a: cosine is ours. a = 0 gives lowres, bit for bit.
  """
  eps = noise(keys, lowres.shape[1:])
  noised = q_sample(lowres, eps, schedule(aug_level))
  # The schedule's clip leaves a little noise at a = 0.
  return jnp.where(per_example(aug_level, lowres) == 0, lowres, noised)
