"""Samplers: one step each, and one loop for all of them (App. A, Eqs. 5-6).

A sampler is a frozen dataclass. It is called with (keys, z_t, x_hat, step) and
returns z_s. `step` is a Step, which holds the loop's state. To add a sampler,
write such a class and add one line to the table in build.

Each example has its own typed PRNG key, keys [B]. An image therefore does not
depend on the rest of its batch.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

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
  """Holds the result of denoising z_t.

  Attributes:
    x_hat: float [B, H, W, C], the estimate of the image after guidance and
      threshold.
    gamma: like x_hat, in [0, 1], the learned exponent of Eq. 6 for each
      element; None for a net that does not learn its variance.
  """

  x_hat: jax.Array
  gamma: jax.Array | None = None


class Step(NamedTuple):
  """Holds the loop's state of the step from z_t to z_s, besides z_t and x_hat.

  Attributes:
    logsnr_t: [B], the log-SNR of z_t.
    logsnr_s: [B], the log-SNR of z_s, larger than logsnr_t.
    gamma: like z_t, the learned exponent of Eq. 6; None if the net learns none.
    x_hat_last: like z_t, the x_hat of the previous step; zeros in the first.
    logsnr_last: [B], the log-SNR of the previous step; logsnr_t in the first.
  """

  logsnr_t: jax.Array
  logsnr_s: jax.Array
  gamma: jax.Array | None
  x_hat_last: jax.Array
  logsnr_last: jax.Array


class Sampler(Protocol):
  """A rule that steps from z_t to z_s; a pytree of its numbers.

  Attributes:
    needs_gamma: whether the rule reads Step.gamma, and so needs a net that
      learns its variance.
  """

  needs_gamma: ClassVar[bool]

  def __call__(
    self, keys: jax.Array, z_t: jax.Array, x_hat: jax.Array, step: Step
  ) -> jax.Array:
    """Returns z_s, like z_t [B, ...], with one key per example, keys [B]."""


def fold_in(keys: jax.Array, data: int | jax.Array) -> jax.Array:
  """Folds one number into every key: keys [B] -> [B]."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def ddim_step(
  z_t: jax.Array, x_hat: jax.Array, *, logsnr_t: jax.Array, logsnr_s: jax.Array
) -> jax.Array:
  """Computes alpha_s x_hat + (sigma_s / sigma_t) (z_t - alpha_t x_hat) (Eq. 5).

  eps is computed from x_hat, not taken from the net: thresholding changes it.
  """
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
  """Computes posterior mean + sqrt(var_s^{1-gamma} var_t^gamma) eps (Eq. 6).

  var_s and var_t are the variances of q(z_s|z_t,x) and of q(z_t|z_s).
  gamma in [0, 1] is a scalar, or an array of z_t's rank that broadcasts against
  z_t.
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


def dpm_step(
  z_t: jax.Array,
  x_hat: jax.Array,
  *,
  logsnr_t: jax.Array,
  logsnr_s: jax.Array,
  x_hat_last: jax.Array,
  logsnr_last: jax.Array,
) -> jax.Array:
  """Takes a DPM-Solver++(2M) step (Lu et al. 2022, arXiv:2211.01095, Alg. 2).

  z_s = (sigma_s / sigma_t) z_t - alpha_s (e^{-h} - 1) D. The estimate D = x_hat
  + h / (2 h_last) (x_hat - x_hat_last) extrapolates the last two x_hat. The
  step lengths h and h_last are in log(alpha / sigma) = logsnr / 2.

  Not in the source: a step more than twice as long as the previous one is of
  first order, as DDIM is. Lists such as DeepFloyd IF's super27 have neighbours
  (800, 799) before a long step, which would extrapolate 40 to 170 times.
  """
  logsnr_t, logsnr_s = per_example(logsnr_t, z_t), per_example(logsnr_s, z_t)
  h = (logsnr_s - logsnr_t) / 2
  h_last = (logsnr_t - per_example(logsnr_last, z_t)) / 2
  # The first step has a single x_hat to extrapolate from: it is a DDIM step.
  has_line = (h_last > 0) & (h <= 2 * h_last)
  slope = jnp.where(has_line, h / jnp.where(has_line, 2 * h_last, 1.0), 0.0)
  d = x_hat + slope * (x_hat - x_hat_last)
  _, sigma_t = alpha_sigma(logsnr_t)
  alpha_s, sigma_s = alpha_sigma(logsnr_s)
  return sigma_s / sigma_t * z_t - alpha_s * jnp.expm1(-h) * d


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DDIM:
  """Samples by ddim_step: deterministic."""

  needs_gamma: ClassVar[bool] = False

  def __call__(
    self, keys: jax.Array, z_t: jax.Array, x_hat: jax.Array, step: Step
  ) -> jax.Array:
    """Returns z_s; the keys are not used."""
    del keys
    return ddim_step(z_t, x_hat, logsnr_t=step.logsnr_t, logsnr_s=step.logsnr_s)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ancestral:
  """Samples by ancestral_step with one gamma for all elements.

  Attributes:
    gamma: the exponent of Eq. 6 in [0, 1]. Not in the paper: the default 0,
      since the paper does not state its gamma.
  """

  gamma: float = 0.0
  needs_gamma: ClassVar[bool] = False

  def __post_init__(self):
    # An array is not checked: it comes from a jitted function, whose caller
    # checked the number.
    if isinstance(self.gamma, int | float) and not 0 <= self.gamma <= 1:
      raise ValueError(f"gamma is {self.gamma}, expected 0 to 1")

  def __call__(
    self, keys: jax.Array, z_t: jax.Array, x_hat: jax.Array, step: Step
  ) -> jax.Array:
    """Returns z_s; a variance that the net learned is not used."""
    fixed = step._replace(gamma=self.gamma)
    return LearnedAncestral()(keys, z_t, x_hat, fixed)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedAncestral:
  """Samples by ancestral_step with the variance that the net learned."""

  needs_gamma: ClassVar[bool] = True

  def __call__(
    self, keys: jax.Array, z_t: jax.Array, x_hat: jax.Array, step: Step
  ) -> jax.Array:
    """Returns z_s."""
    assert step.gamma is not None, "the net learns no variance"
    return ancestral_step(
      keys,
      z_t,
      x_hat,
      logsnr_t=step.logsnr_t,
      logsnr_s=step.logsnr_s,
      gamma=step.gamma,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DPMSolver:
  """Samples by dpm_step: deterministic, of second order."""

  needs_gamma: ClassVar[bool] = False

  def __call__(
    self, keys: jax.Array, z_t: jax.Array, x_hat: jax.Array, step: Step
  ) -> jax.Array:
    """Returns z_s; the keys are not used."""
    del keys
    return dpm_step(
      z_t,
      x_hat,
      logsnr_t=step.logsnr_t,
      logsnr_s=step.logsnr_s,
      x_hat_last=step.x_hat_last,
      logsnr_last=step.logsnr_last,
    )


class Carry(NamedTuple):
  """Holds the state that one step passes to the next.

  Attributes:
    z: float [B, ...], the noised images; after the final step, the images.
    x_hat: like z, the estimate of the previous step.
    logsnr: [B], the log-SNR of the previous step.
  """

  z: jax.Array
  x_hat: jax.Array
  logsnr: jax.Array


def begin(keys: jax.Array, shape: tuple[int, ...]) -> Carry:
  """Draws z_1 ~ N(0, I) [B, *shape], one key per example, keys [B]."""
  z_1 = noise(fold_in(keys, 0), shape)
  return Carry(z_1, jnp.zeros_like(z_1), jnp.zeros(keys.shape))


def advance(
  carry: Carry,
  first: int | jax.Array,
  last: int | jax.Array,
  *,
  keys: jax.Array,
  denoise: Callable[[jax.Array, jax.Array], Denoised],
  logsnr: Callable[[jax.Array], jax.Array],
  steps: int | jax.Array,
  sampler: Sampler,
) -> Carry:
  """Runs the steps first, ..., last - 1 of 0, ..., steps - 1 (App. A).

  The final step adds no noise: its z_s is x_hat, the mean at sigma_s = 0. The
  bounds may be traced, so one program runs any range of steps. Consecutive
  ranges give bit-identical images to one call with all steps.

  Args:
    carry: the state before step `first`.
    first: the first step to run.
    last: the step to stop before.
    keys: typed PRNG keys [B], one per example.
    denoise: called as denoise(z [B, ...], logsnr [B]).
    logsnr: called as logsnr(i), returns the log-SNR of step i; it increases
      with i.
    steps: the total number of steps.
    sampler: the rule of a step.
  """
  assert keys.ndim == 1, f"expected one typed key per example, got {keys.shape}"

  def body(i: jax.Array, carry: Carry) -> Carry:
    logsnr_t, logsnr_s = (
      jnp.broadcast_to(logsnr(j), keys.shape) for j in (i, i + 1)
    )
    x_hat, gamma = denoise(carry.z, logsnr_t)
    x_hat = x_hat.astype(jnp.float32)
    logsnr_last = jnp.where(i == 0, logsnr_t, carry.logsnr)
    step = Step(logsnr_t, logsnr_s, gamma, carry.x_hat, logsnr_last)
    z_s = sampler(fold_in(keys, i + 1), carry.z, x_hat, step)
    return Carry(jnp.where(i + 1 == steps, x_hat, z_s), x_hat, logsnr_t)

  return jax.lax.fori_loop(first, last, body, carry)


def sample(
  keys: jax.Array,
  denoise: Callable[[jax.Array, jax.Array], Denoised],
  shape: tuple[int, ...],
  *,
  logsnr: jax.Array,
  sampler: Sampler = DDIM(),
) -> jax.Array:
  """Samples x [B, *shape] from N(0, I) through the levels logsnr [n] (App. A).

  logsnr increases. keys [B] has one key per example. denoise is called as
  denoise(z [B, *shape], logsnr [B]).
  """
  logsnr = jnp.asarray(logsnr, jnp.float32)
  assert logsnr.ndim == 1 and logsnr.size, f"expected [n], got {logsnr.shape}"
  steps = logsnr.size
  level = lambda i: logsnr[jnp.minimum(i, steps - 1)]
  settings = dict(keys=keys, denoise=denoise, logsnr=level)
  carry = advance(
    begin(keys, shape), 0, steps, steps=steps, sampler=sampler, **settings
  )
  return carry.z
