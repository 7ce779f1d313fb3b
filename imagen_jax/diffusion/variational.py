"""The variational bound on a learned variance (Nichol & Dhariwal 2021).

arXiv:2102.09672, Eqs. 4-6 and 15-16, of 1000 steps. Everything is in bits per
number of x, as in OpenAI's guided-diffusion. The hybrid loss is that of eps, a
mean over the steps, plus 0.001 times the bound, a sum over them: so a step's
term is added as it is. gamma is as in samplers.py, (v + 1) / 2.
"""

import math

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jax.scipy.special import ndtr

from imagen_jax.diffusion.gaussian import log_variances, per_example, posterior
from imagen_jax.diffusion.schedules import STEPS, Schedule


def gaussian_kl(
  mean_1: jax.Array,
  log_var_1: jax.Array,
  mean_2: jax.Array,
  log_var_2: jax.Array,
) -> jax.Array:
  """KL(N(mean_1, var_1) || N(mean_2, var_2)) in nats, of every number."""
  ratio = jnp.exp(log_var_1 - log_var_2)
  square = jnp.square(mean_1 - mean_2) * jnp.exp(-log_var_2)
  return 0.5 * (log_var_2 - log_var_1 - 1 + ratio + square)


def log_likelihood(
  x: jax.Array, mean: jax.Array, log_var: jax.Array
) -> jax.Array:
  """log of what N(mean, var) gives to the grey level of x, in nats.

  x in [-1, 1], of 256 levels, 2 / 255 apart; the outermost ones have all that
  lies beyond them (Ho et al. 2020, Eq. 13). Each has at least 1e-12.
  """
  inv_std = jnp.exp(-log_var / 2)
  above = (x - mean + 1 / 255) * inv_std
  below = (x - mean - 1 / 255) * inv_std
  inner = jnp.where(x > 0.999, ndtr(-below), ndtr(above) - ndtr(below))
  share = jnp.where(x < -0.999, ndtr(above), inner)
  # A level far from the mean has nothing, in float32: the floor spares -inf.
  return jnp.log(jnp.maximum(share, 1e-12))


def variational_bound(
  x: jax.Array,
  z_t: jax.Array,
  x_hat: jax.Array,
  gamma: jax.Array,
  *,
  time: jax.Array,
  schedule: Schedule,
) -> jax.Array:
  """The bound's term of the step from t, in bits per number of x: [B].

  x, z_t, x_hat, gamma [B, ...]; time [B] in [0, 1000], in steps. With s a step
  before t, KL(q(z_s|z_t,x) || p(z_s|z_t)), where p is the ancestral step.
  Within the first step, -log p(x|z_t).
  """
  at = lambda steps: schedule(steps / STEPS)
  first = per_example(time, x) < 1
  # Before the first step is x itself, of which the posterior has no variance.
  # p has at least that of the step after, as in guided-diffusion.
  s = jnp.where(time < 1, time, time - 1)
  logsnr_s, logsnr_t = per_example(at(s), x), per_example(at(s + 1), x)
  low, high = log_variances(logsnr_s=logsnr_s, logsnr_t=logsnr_t)
  log_var = (1 - gamma) * low + gamma * jnp.where(
    first, log_sigmoid(-logsnr_s), high
  )

  true, mean = (
    posterior(z_t, of, logsnr_s=at(s), logsnr_t=at(s + 1))[0]
    for of in (x, x_hat)
  )
  kl = gaussian_kl(true, low, mean, log_var)
  # Where it is not asked for, the likelihood's gradient shall be finite too.
  nll = -log_likelihood(x, jnp.where(first, x_hat, x), log_var)
  nats = jnp.where(first, nll, kl)
  return jnp.mean(nats, axis=tuple(range(1, x.ndim))) / math.log(2)
