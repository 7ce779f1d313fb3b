"""DPM-Solver++ beside DDIM, where the flow is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import gaussian, samplers, schedules
from imagen_jax.diffusion.samplers import Denoised
from imagen_jax.diffusion.sampling import (
  Sampling,
  UniformLogSNR,
  UniformTime,
  time,
)
from imagen_jax.interop.deepfloyd_if import TIMESTEPS

MEAN, STD = 0.3, 0.5
COSINE = schedules.CosineSchedule()


def make_keys(n):
  return jax.random.split(jax.random.key(0), n)


def gaussian_denoiser(z, logsnr):
  """E[x | z] for data N(MEAN, STD^2)."""
  alpha, sigma = schedules.alpha_sigma(gaussian.per_example(logsnr, z))
  gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
  return Denoised(MEAN + gain * (z - alpha * MEAN))


def levels(sampling, schedule):
  """The logsnr of every step."""
  steps = jnp.arange(sampling.num_steps)
  return schedule(time(steps, sampling.args(), schedule))


def ode_error(sampler, logsnr):
  """Of x_hat after steps at levels logsnr, against the exact flow's."""
  keys = make_keys(2)
  draw = functools.partial(
    samplers.sample, shape=(64,), logsnr=logsnr, sampler=sampler
  )
  x_hat = jax.jit(lambda keys: draw(keys, gaussian_denoiser))(keys)
  z = gaussian.noise(samplers.fold_in(keys, 0), (64,))
  alpha, sigma = schedules.alpha_sigma(logsnr[jnp.array([0, -1])])
  std = jnp.sqrt((alpha * STD) ** 2 + sigma**2)
  # The flow keeps how many standard deviations z is from the mean.
  z = alpha[1] * MEAN + std[1] * (z - alpha[0] * MEAN) / std[0]
  return np.abs(x_hat - gaussian_denoiser(z, logsnr[-1]).x_hat).max()


@pytest.mark.parametrize(
  ("sampler", "order"), [(samplers.DDIM(), 1), (samplers.DPMSolver(), 2)]
)
def test_order_of_convergence(sampler, order):
  """On the grid that configs ask for by grid.kind "logsnr"."""
  grid = UniformLogSNR(t_first=0.97, t_last=0.03)
  few, many = (
    ode_error(sampler, levels(Sampling(n, grid=grid), COSINE)) for n in (20, 40)
  )
  assert abs(np.log2(few / many) - order) < 0.2, (few, many)


def mixture(z, logsnr):
  """E[x | z] for data of two Gaussians."""
  means, std = jnp.array([-0.6, 0.4]), jnp.array([0.2, 0.3])
  alpha, sigma = schedules.alpha_sigma(gaussian.per_example(logsnr, z))
  alpha, sigma = alpha[..., None], sigma[..., None]
  var = alpha**2 * std**2 + sigma**2
  away = z[..., None] - alpha * means
  share = jax.nn.softmax(-(away**2) / (2 * var) - jnp.log(var) / 2)
  of_each = means + alpha * std**2 / var * away
  return Denoised((share * of_each).sum(-1))


def mixture_error(sampler, logsnr, many):
  """The mean distance from the image of many small steps, of one noise."""
  draw = functools.partial(samplers.sample, make_keys(8), mixture, (64,))
  jitted = jax.jit(lambda levels: draw(logsnr=levels, sampler=sampler))
  exact = jax.jit(lambda levels: draw(logsnr=levels, sampler=samplers.DDIM()))
  return np.abs(jitted(logsnr) - exact(many)).mean()


def test_a_grid_in_logsnr_is_the_more_exact():
  many = levels(Sampling(4000, grid=UniformLogSNR(t_last=1e-4)), COSINE)
  grids = UniformTime(), UniformLogSNR(t_first=0.99, t_last=0.02)
  by_time, by_logsnr = (
    mixture_error(
      samplers.DPMSolver(), levels(Sampling(25, grid=grid), COSINE), many
    )
    for grid in grids
  )
  assert by_logsnr < 0.5 * by_time, (by_logsnr, by_time)


@pytest.mark.parametrize("name", ["super27", "super100", "smart100"])
def test_lists_with_neighbours(name):
  """A line through levels 40 to 170 times nearer than the step is no use."""
  table = schedules.DiscreteCosineSchedule()
  listed = levels(Sampling(timesteps=TIMESTEPS[name]), table)
  many = jnp.linspace(listed[0], listed[-1], 4000)
  solver, ddim = (
    mixture_error(sampler, listed, many)
    for sampler in (samplers.DPMSolver(), samplers.DDIM())
  )
  assert solver < ddim, (solver, ddim)


def test_dpm_begins_as_ddim_and_follows_lines():
  """Of an x_hat linear in logsnr, the integral in closed form."""
  z_t, x_hat, slope = jax.random.normal(jax.random.key(1), (3, 3, 2, 2, 3))
  levels = {"logsnr_t": jnp.full(3, -1.0), "logsnr_s": jnp.full(3, 0.5)}
  first = samplers.dpm_step(
    z_t, x_hat, x_hat_last=slope, logsnr_last=jnp.full(3, -1.0), **levels
  )
  ddim = samplers.ddim_step(z_t, x_hat, **levels)
  np.testing.assert_allclose(first, ddim, atol=1e-5)
  second = samplers.dpm_step(
    z_t,
    x_hat,
    x_hat_last=x_hat - slope * 3.0,
    logsnr_last=jnp.full(3, -4.0),
    **levels,
  )
  # D is x_hat in the middle of the step, 0.75 on from logsnr_t.
  expected = samplers.ddim_step(z_t, x_hat + 0.75 * slope, **levels)
  np.testing.assert_allclose(second, expected, atol=1e-5)
