"""Samplers: one step each, and one loop for all of them (App. A, Eqs. 5-6).

Randomness is one typed PRNG key per example, keys [B], so that a picture does
not depend on what else is in its batch.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.gaussian import (
  log_variances,
  noise,
  per_example,
  posterior,
)
from imagen_jax.diffusion.schedules import Schedule, alpha_sigma


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
) -> jax.Array:
  """z_s = posterior mean + sqrt(var_s^{1-gamma} var_t^gamma) eps (Eq. 6).

  var_s and var_t are the variances of q(z_s|z_t,x) and of q(z_t|z_s). gamma in
  [0, 1] is a scalar, or an array with z_t's rank that broadcasts against it.
  """
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
  ) -> jax.Array:
    """One step from z_t to z_s."""
    return ancestral_step(
      keys,
      z_t,
      x_hat,
      logsnr_t=logsnr_t,
      logsnr_s=logsnr_s,
      gamma=self.gamma,
    )


def sample(
  keys: jax.Array,
  denoise: Callable[[jax.Array, jax.Array], jax.Array],
  shape: tuple[int, ...],
  *,
  schedule: Schedule,
  steps: int,
  step: Callable[..., jax.Array] = ddim_step,
) -> jax.Array:
  """From z_1 ~ N(0, I) to x [B, *shape] on a uniform grid of t (App. A).

  keys [B]; denoise(z [B, *shape], logsnr [B]) -> x_hat, guided and thresholded.
  The last step adds no noise: it returns x_hat, the mean at sigma_s = 0.
  """
  if steps < 1:
    raise ValueError(f"steps={steps}: sampling needs at least one step.")
  assert keys.ndim == 1, f"expected one typed key per example, got {keys.shape}"
  logsnr = schedule(jnp.linspace(1.0, 0.0, steps + 1))

  def body(z_t, i):
    logsnr_t = jnp.broadcast_to(logsnr[i - 1], keys.shape)
    logsnr_s = jnp.broadcast_to(logsnr[i], keys.shape)
    x_hat = denoise(z_t, logsnr_t).astype(jnp.float32)
    z_s = step(
      fold_in(keys, i), z_t, x_hat, logsnr_t=logsnr_t, logsnr_s=logsnr_s
    )
    return jnp.where(i == steps, x_hat, z_s), None

  z_1 = noise(fold_in(keys, 0), shape)
  x, _ = jax.lax.scan(body, z_1, jnp.arange(1, steps + 1))
  return x
