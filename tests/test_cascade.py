"""What stages a cascade can have, and how they can be sampled."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import pytest

from imagen_jax.cascade import Cascade
from imagen_jax.diffusion.gaussian import X
from imagen_jax.diffusion.guidance import NoThreshold
from imagen_jax.diffusion.samplers import LearnedAncestral
from imagen_jax.stage import Sampling, Stage


class Fake(nn.Module):
  """A net that answers fn(z, cond)."""

  fn: Callable
  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    return self.fn(z, cond)


def zeros(z, cond):
  return jnp.zeros_like(z)


def make_stage(fn, size, lowres_size=None):
  return Stage(Fake(fn), size, prediction=X, lowres_size=lowres_size)


def make_cascade(*stages, **sampling):
  plain = {"steps": 1, "guidance": 1.0, "threshold": NoThreshold()}
  names = ("small", "middle", "large")[: len(stages)]
  return Cascade(names, stages, (Sampling(**plain | sampling),) * len(stages))


THREE = (
  make_stage(zeros, 4),
  make_stage(zeros, 8, 4),
  make_stage(zeros, 32, 8),
)


@pytest.mark.parametrize(
  ("stages", "message"),
  [
    ((), "a cascade has no stages"),
    (THREE[1:], "stage small has lowres_size 4, expected None"),
    ((THREE[0], THREE[0]), "stage middle has lowres_size None, expected 4"),
    ((THREE[0], THREE[2]), "stage middle has lowres_size 8, expected 4"),
    ((*THREE[:2], THREE[1]), "stage large has lowres_size 4, expected 8"),
  ],
)
def test_stages_that_do_not_chain(stages, message):
  with pytest.raises(ValueError, match=message):
    make_cascade(*stages)


def test_an_augmentation_level_beyond_what_was_trained():
  larger = dataclasses.replace(THREE[1], max_aug_level=0.3)
  make_cascade(THREE[0], larger, aug_level=0.3)
  with pytest.raises(
    ValueError, match="stage middle: sampling has aug_level 0.4"
  ):
    make_cascade(THREE[0], larger, aug_level=0.4)


def test_a_learned_variance_that_the_net_does_not_have():
  with pytest.raises(
    ValueError, match="stage small: sampling is with the learned variance, exp"
  ):
    make_cascade(THREE[0], step=LearnedAncestral())
