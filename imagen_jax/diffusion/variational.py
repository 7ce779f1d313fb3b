"""The variational bound of a learned variance, over 1000 steps.

Nichol & Dhariwal 2021 (arXiv:2102.09672), Eqs. 4-6 and 15-16. Results are in
bits per element of x, as in OpenAI's guided-diffusion. The hybrid loss is the
eps loss, a mean over the steps, plus 0.001 times the bound, a sum over the 1000
steps. The two factors cancel, so a step's term is added as it is. gamma is
(v + 1) / 2, as in samplers.py.
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
  """Computes KL(N(mean_1, var_1) || N(mean_2, var_2)) per element, in nats."""
  ratio = jnp.exp(log_var_1 - log_var_2)
  square = jnp.square(mean_1 - mean_2) * jnp.exp(-log_var_2)
  return 0.5 * (log_var_2 - log_var_1 - 1 + ratio + square)


def log_likelihood(
  x: jax.Array, mean: jax.Array, log_var: jax.Array
) -> jax.Array:
  """Computes the log-probability of x's grey level under N(mean, var), in nats.

  x in [-1, 1] has 256 levels, 2 / 255 apart. The two outermost levels include
  the tails beyond them (Ho et al. 2020, arXiv:2006.11239, Eq. 13). Every level
  has a probability of at least 1e-12.
  """
  inv_std = jnp.exp(-log_var / 2)
  above = (x - mean + 1 / 255) * inv_std
  below = (x - mean - 1 / 255) * inv_std
  inner = jnp.where(x > 0.999, ndtr(-below), ndtr(above) - ndtr(below))
  share = jnp.where(x < -0.999, ndtr(above), inner)
  # The probability of a level far from the mean is 0 in float32. The floor
  # avoids log 0 = -inf.
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
  """Computes the bound's term [B] of the step from t, in bits per element of x.

  With s one step before t, the term is KL(q(z_s|z_t,x) || p(z_s|z_t)), where p
  is the ancestral step. In the first step it is -log p(x|z_t).

  Args:
    x: float [B, ...] in [-1, 1], the images.
    z_t: float [B, ...].
    x_hat: float [B, ...], the net's estimate of x.
    gamma: float [B, ...] in [0, 1], the learned exponent of Eq. 6.
    time: float [B] in [0, 1000], in steps.
    schedule: the noise schedule.
  """
  at = lambda steps: schedule(steps / STEPS)
  first = per_example(time, x) < 1
  # The first step ends at x itself, so its posterior has no variance. As in
  # guided-diffusion, p then has at least the posterior variance of the next
  # step.
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
  # Outside the first step the likelihood is discarded, but its gradient must
  # still be finite, so the mean is x there.
  nll = -log_likelihood(x, jnp.where(first, x_hat, x), log_var)
  nats = jnp.where(first, nll, kl)
  return jnp.mean(nats, axis=tuple(range(1, x.ndim))) / math.log(2)
