"""A stage's loss under the weightings, and the times that it draws."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.gaussian import EPS, V, X, squared_error
from imagen_jax.diffusion.schedules import (
  CosineSchedule,
  DiscreteCosineSchedule,
)
from imagen_jax.diffusion.weighting import MinSNR, Sigmoid, even_times
from imagen_jax.stage import Stage
from imagen_jax.types import TextEmbedding

KEY = jax.random.key(0)
TEXT = TextEmbedding(jnp.zeros((8, 1, 2)), jnp.ones((8, 1), bool))
X0 = jax.random.uniform(jax.random.key(2), (8, 4, 4, 3), minval=-1)
SCHEDULE = CosineSchedule(-10.0, 10.0)


class Zero(nn.Module):
  """A net that answers zero."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    return jnp.zeros_like(z)


def make_stage(**fields):
  defaults = dict(schedule=SCHEDULE, prediction=X, loss_space=X)
  return Stage(Zero(), 4, **(defaults | fields))


def loss_of(stage, draws):
  return stage.loss({}, draws, X0, TEXT)[0]


@pytest.mark.parametrize("kind", ["min_snr", "sigmoid"])
def test_a_weighting_gives_one_loss_in_every_space(kind):
  """Which is the error of x, weighted by the closed form (Eq. 4)."""
  draws = make_stage().draw(KEY, 8)
  t = np.asarray(draws.time, np.float64)
  logsnr = -2 * np.log(np.tan(np.pi * t / 2))
  assert np.abs(logsnr).max() < 10  # of these draws none is clipped
  snr = np.exp(logsnr)
  if kind == "min_snr":
    weighting, weight = MinSNR(gamma=2.0), np.minimum(snr, 2.0)
  else:
    slope = -2 * np.pi / np.sin(np.pi * t)
    weighting, weight = Sigmoid(bias=1.0), -slope * snr / (1 + snr / np.e)
  expected = weight * np.square(X0).mean((1, 2, 3))
  for space in (EPS, X, V):
    stage = make_stage(loss_space=space, weighting=weighting)
    np.testing.assert_allclose(loss_of(stage, draws), expected, rtol=1e-3)


def test_the_uniform_weighting_changes_no_bit():
  stage = make_stage()
  draws = stage.draw(KEY, 8)
  logsnr = SCHEDULE(draws.time)
  error = squared_error(X, jnp.zeros_like(X0), X0, X0, logsnr, X)
  np.testing.assert_array_equal(loss_of(stage, draws), error)


def test_times_are_drawn_as_told():
  usual = make_stage()
  draws = dataclasses.replace(usual, times=even_times).draw(KEY, 64)
  gaps = np.diff(np.sort(draws.time))
  np.testing.assert_allclose(gaps, 1 / 64, atol=1e-6)
  others = usual.draw(KEY, 64)
  assert (draws.eps_keys == others.eps_keys).all()
  assert (draws.aug_level == others.aug_level).all()
  gaps = np.diff(np.sort(others.time))
  assert np.abs(gaps - 1 / 64).max() > 0.01


def test_a_schedule_in_steps_has_no_sigmoid_weighting():
  fields = dict(schedule=DiscreteCosineSchedule(), weighting=Sigmoid())
  stage = make_stage(**fields)
  draws = stage.draw(KEY, 8)
  with pytest.raises(ValueError, match="is sigmoid, expected a schedule with"):
    loss_of(stage, draws)
  stage = make_stage(**fields | {"weighting": MinSNR()})
  assert jnp.isfinite(loss_of(stage, draws)).all()
