"""Samplers: one step each, and one loop for all of them (App. A, Eqs. 5-6).

A step goes from z_t to z_s, given the net's x_hat of z_t:
step(keys, z_t, x_hat, *, logsnr_t, logsnr_s, ...) -> z_s. It names what else it
needs of what the loop knows, and lets the rest pass: gamma, how much variance
the net learned (None if it did not), and x_hat_last and logsnr_last of the step
before. Logsnrs are [B]; in the first step, logsnr_last is logsnr_t.

Randomness is one typed PRNG key per example, keys [B], so that a picture does
not depend on what else is in its batch.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.gaussian import (
  log_variances,
  noise,
  per_example,
  posterior,
)
from imagen_jax.diffusion.schedules import alpha_sigma


class Denoised(NamedTuple):
  """What is made of z_t: x_hat, guided and thresholded, and gamma.

  gamma is like x_hat, the share of Eq. 6 for every number of it, of a net that
  learns its variance; None of any other.
  """

  x_hat: jax.Array
  gamma: jax.Array | None = None


def fold_in(keys: jax.Array, data: int | jax.Array) -> jax.Array:
  """jax.random.fold_in of one number into every key: keys [B] -> [B]."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def ddim_step(
  keys: jax.Array,
  z_t: jax.Array,
  x_hat: jax.Array,
  *,
  logsnr_t: jax.Array,
  logsnr_s: jax.Array,
  **_,
) -> jax.Array:
  """z_s = alpha_s x_hat + (sigma_s / sigma_t) (z_t - alpha_t x_hat) (Eq. 5).

  The eps is that of x_hat, not of the net: they differ after thresholding.
  """
  del keys  # Deterministic.
  alpha_t, sigma_t = alpha_sigma(per_example(logsnr_t, z_t))
  alpha_s, sigma_s = alpha_sigma(per_example(logsnr_s, z_t))
  return alpha_s * x_hat + sigma_s / sigma_t * (z_t - alpha_t * x_hat)


def ancestral_step(
  keys: jax.Array,
  z_t: jax.Array,
  x_hat: jax.Array,
  *,
  logsnr_t: jax.Array,
  logsnr_s: jax.Array,
  gamma: jax.Array,
  **_,
) -> jax.Array:
  """z_s = posterior mean + sqrt(var_s^{1-gamma} var_t^gamma) eps (Eq. 6).

  var_s and var_t are the variances of q(z_s|z_t,x) and of q(z_t|z_s). gamma in
  [0, 1] is a scalar, or an array with z_t's rank that broadcasts against it. In
  the loop it is the net's: this is the sampler with learned variance.
  """
  assert gamma is not None, "a net that learns no variance has no gamma"
  gamma = jnp.asarray(gamma, jnp.float32)
  assert gamma.ndim in (0, z_t.ndim), f"gamma {gamma.shape}, z_t {z_t.shape}"
  logsnr_t, logsnr_s = jnp.asarray(logsnr_t), jnp.asarray(logsnr_s)
  mean, _ = posterior(z_t, x_hat, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
  log_var_s, log_var_t = log_variances(
    logsnr_s=per_example(logsnr_s, z_t), logsnr_t=per_example(logsnr_t, z_t)
  )
  log_var = (1 - gamma) * log_var_s + gamma * log_var_t
  return mean + jnp.exp(log_var / 2) * noise(keys, z_t.shape[1:])


@dataclasses.dataclass(frozen=True)
class AncestralStep:
  """ancestral_step with a fixed scalar gamma; the default 0 is ours."""

  gamma: float = 0.0

  def __post_init__(self):
    if not 0 <= self.gamma <= 1:
      raise ValueError(
        f"gamma={self.gamma} of the ancestral sampler must be in 0..1."
      )

  def __call__(
    self,
    keys: jax.Array,
    z_t: jax.Array,
    x_hat: jax.Array,
    *,
    logsnr_t: jax.Array,
    logsnr_s: jax.Array,
    **_,
  ) -> jax.Array:
    """One step from z_t to z_s; what the net learned does not matter."""
    return ancestral_step(
      keys,
      z_t,
      x_hat,
      logsnr_t=logsnr_t,
      logsnr_s=logsnr_s,
      gamma=self.gamma,
    )


def dpm_step(
  keys: jax.Array,
  z_t: jax.Array,
  x_hat: jax.Array,
  *,
  logsnr_t: jax.Array,
  logsnr_s: jax.Array,
  x_hat_last: jax.Array,
  logsnr_last: jax.Array,
  **_,
) -> jax.Array:
  """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, Alg. 2).

  z_s = (sigma_s / sigma_t) z_t - alpha_s (e^{-h} - 1) D, with the line through
  the last two x_hat, D = x_hat + h / (2 h_last) (x_hat - x_hat_last); h and
  h_last are the steps' lengths in log(alpha / sigma) = logsnr / 2.
  """
  del keys  # Deterministic.
  logsnr_t, logsnr_s = per_example(logsnr_t, z_t), per_example(logsnr_s, z_t)
  h = (logsnr_s - logsnr_t) / 2
  h_last = (logsnr_t - per_example(logsnr_last, z_t)) / 2
  # No line goes through one point: the first step is DDIM's.
  slope = jnp.where(h_last > 0, h / jnp.where(h_last > 0, 2 * h_last, 1.0), 0.0)
  d = x_hat + slope * (x_hat - x_hat_last)
  _, sigma_t = alpha_sigma(logsnr_t)
  alpha_s, sigma_s = alpha_sigma(logsnr_s)
  return sigma_s / sigma_t * z_t - alpha_s * jnp.expm1(-h) * d


def sample(
  keys: jax.Array,
  denoise: Callable[[jax.Array, jax.Array], Denoised],
  shape: tuple[int, ...],
  *,
  logsnr: jax.Array,
  step: Callable[..., jax.Array] = ddim_step,
) -> jax.Array:
  """From N(0, I) to x [B, *shape] through the levels logsnr [n] (App. A).

  keys [B]; logsnr increases; denoise(z [B, *shape], logsnr [B]). The last step
  adds no noise: it returns x_hat, the mean at sigma_s = 0.
  """
  logsnr = jnp.asarray(logsnr, jnp.float32)
  assert keys.ndim == 1, f"expected one typed key per example, got {keys.shape}"
  assert logsnr.ndim == 1 and logsnr.size, f"expected [n], got {logsnr.shape}"
  steps = len(logsnr)

  def body(carry, now):
    z_t, x_hat_last, logsnr_last = carry
    i, *levels = now
    logsnr_t, logsnr_s = (jnp.broadcast_to(a, keys.shape) for a in levels)
    x_hat, gamma = denoise(z_t, logsnr_t)
    x_hat = x_hat.astype(jnp.float32)
    z_s = step(
      fold_in(keys, i),
      z_t,
      x_hat,
      logsnr_t=logsnr_t,
      logsnr_s=logsnr_s,
      gamma=gamma,
      x_hat_last=x_hat_last,
      logsnr_last=logsnr_last,
    )
    return (jnp.where(i == steps, x_hat, z_s), x_hat, logsnr_t), None

  z_1 = noise(fold_in(keys, 0), shape)
  # The last level's step goes nowhere, for it is not taken.
  next_ones = jnp.append(logsnr[1:], logsnr[-1])
  first = z_1, jnp.zeros_like(z_1), jnp.broadcast_to(logsnr[0], keys.shape)
  levels = jnp.arange(1, steps + 1), logsnr, next_ones
  (x, *_), _ = jax.lax.scan(body, first, levels)
  return x
