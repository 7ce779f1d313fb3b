"""DPM-Solver++ beside DDIM, where the flow is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import gaussian, samplers, schedules
from imagen_jax.diffusion.samplers import Denoised

MEAN, STD = 0.3, 0.5


def make_keys(n):
  return jax.random.split(jax.random.key(0), n)


def gaussian_denoiser(z, logsnr):
  """E[x | z] for data N(MEAN, STD^2)."""
  alpha, sigma = schedules.alpha_sigma(gaussian.per_example(logsnr, z))
  gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
  return Denoised(MEAN + gain * (z - alpha * MEAN))


def ode_error(sampler, steps):
  """Of x_hat after steps uniform in logsnr, against the exact flow's."""
  logsnr = jnp.linspace(-6.0, 6.0, steps + 1)
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
  few, many = ode_error(sampler, 20), ode_error(sampler, 40)
  assert abs(np.log2(few / many) - order) < 0.2, (few, many)


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
