"""Noise schedules: maps between time t in [0, 1] (1 is noise) and log-SNR.

Every formula downstream takes logsnr = log(alpha^2 / sigma^2), never t, so a
schedule is a function and its inverse. The paper names the schedules (App. F).
Not in the paper: the clips that keep alpha and sigma above zero.
"""

import dataclasses
import functools
import math
from typing import Protocol

import jax
import jax.numpy as jnp

# A net counts time in steps of 1 / STEPS, whatever its schedule.
STEPS = 1000
# The largest |log-SNR|: beyond it alpha^2 or sigma^2 underflows in float32, and
# their ratio is infinite or NaN.
MOST_LOGSNR = 80.0


class Schedule(Protocol):
  """A decreasing map of time to log-SNR, with its inverse."""

  def __call__(self, t: jax.Array) -> jax.Array:
    """Maps t in [0, 1] to logsnr, any shape."""

  def inverse(self, logsnr: jax.Array) -> jax.Array:
    """Maps logsnr to t in [0, 1], any shape."""

  def from_uniform(self, u: jax.Array) -> jax.Array:
    """Maps uniform draws u [...] in [0, 1) to times t [...]."""


class Continuous:
  """Draws t itself uniformly; the base of schedules of all t in [0, 1]."""

  def from_uniform(self, u: jax.Array) -> jax.Array:
    """Returns u as the time."""
    return jnp.asarray(u, jnp.float32)


@dataclasses.dataclass(frozen=True)
class CosineSchedule(Continuous):
  """Computes logsnr(t) = -2 log tan(pi t / 2), so alpha = cos(pi t / 2).

  The paper uses it in stages 1 and 2 (Apps. F.1, F.2).

  Attributes:
    logsnr_min: the smallest log-SNR. Not in the paper: -20, which keeps alpha
      above zero.
    logsnr_max: the largest log-SNR. Not in the paper: 20, which keeps sigma
      above zero.
  """

  logsnr_min: float = -20.0
  logsnr_max: float = 20.0

  def __post_init__(self):
    if not self.logsnr_min < self.logsnr_max:
      raise ValueError(
        f"logsnr_min is {self.logsnr_min}, expected less than logsnr_max, "
        f"{self.logsnr_max}"
      )
    for name in ("logsnr_min", "logsnr_max"):
      value = getattr(self, name)
      if not -MOST_LOGSNR <= value <= MOST_LOGSNR:
        raise ValueError(
          f"{name} is {value}, expected -{MOST_LOGSNR:g} to {MOST_LOGSNR:g},"
          " the log-SNR that float32 can compute with"
        )

  def __call__(self, t: jax.Array) -> jax.Array:
    """Returns 2 log(alpha / sigma), clipped; t in [0, 1]."""
    t = jnp.asarray(t, jnp.float32)
    # tan is not used: in float32 tan(pi / 2) is negative, so its log is NaN.
    log_alpha = jnp.log(jnp.sin(jnp.pi / 2 * (1 - t)))
    log_sigma = jnp.log(jnp.sin(jnp.pi / 2 * t))
    logsnr = 2 * (log_alpha - log_sigma)
    return jnp.clip(logsnr, self.logsnr_min, self.logsnr_max)

  def inverse(self, logsnr: jax.Array) -> jax.Array:
    """Returns t = (2 / pi) atan(exp(-logsnr / 2))."""
    logsnr = jnp.asarray(logsnr, jnp.float32)
    return 2 / jnp.pi * jnp.arctan(jnp.exp(-logsnr / 2))


@dataclasses.dataclass(frozen=True)
class LinearSchedule(Continuous):
  """Computes logsnr(t) = -log expm1(B(t)), B(t) = integral of beta from 0 to t.

  beta rises linearly with t. The paper uses the schedule in stage 3 (App. F.3).
  The default betas are the continuous-time limit of its 1000 steps, 1e-4 to
  0.02.

  Attributes:
    beta_min: beta at t = 0.
    beta_max: beta at t = 1.
    t_min: the smallest t. Not in the paper: it keeps sigma above zero.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  t_min: float = 1e-3

  def __post_init__(self):
    if not 0 < self.beta_min <= self.beta_max:
      raise ValueError(
        f"beta_min is {self.beta_min}, expected more than 0 and at most "
        f"beta_max, {self.beta_max}"
      )
    if self.beta_min + self.beta_max > 160:
      raise ValueError(
        f"beta_min + beta_max is {self.beta_min + self.beta_max}, expected at "
        "most 160: float32 has no smaller alpha than they leave at t = 1"
      )
    if not 0 < self.t_min < 1:
      raise ValueError(
        f"t_min is {self.t_min}, expected more than 0 and less than 1"
      )
    # At t_min, logsnr = -log B(t_min), with B nearly beta_min t_min.
    if -math.log(self.beta_min) - math.log(self.t_min) > MOST_LOGSNR:
      raise ValueError(
        f"t_min is {self.t_min}, expected at least"
        f" {math.exp(-MOST_LOGSNR) / self.beta_min:.0e}: the log-SNR there is"
        f" to be at most {MOST_LOGSNR:g}"
      )

  def __call__(self, t: jax.Array) -> jax.Array:
    """Returns -log expm1(B(t)).

    B(t) = beta_min t + (beta_max - beta_min) / 2 t^2. A t below t_min counts as
    t_min.
    """
    t = jnp.clip(jnp.asarray(t, jnp.float32), self.t_min, 1.0)
    integral = self.beta_min * t + (self.beta_max - self.beta_min) / 2 * t**2
    # log expm1(B) without overflow for a large B.
    return -(integral + jnp.log(-jnp.expm1(-integral)))

  def inverse(self, logsnr: jax.Array) -> jax.Array:
    """Returns the root t > 0 of B(t) = log(1 + exp(-logsnr)), at most 1."""
    integral = jax.nn.softplus(-jnp.asarray(logsnr, jnp.float32))
    slope = self.beta_max - self.beta_min
    root = jnp.sqrt(self.beta_min**2 + 2 * slope * integral)
    return jnp.minimum(2 * integral / (self.beta_min + root), 1.0)


@functools.cache
def cosine_table() -> tuple[float, ...]:
  """Returns log(abar / (1 - abar)) of steps 0, ..., 999 of the cosine betas.

  beta_i = min(1 - f((i + 1) / 1000) / f(i / 1000), 0.999), abar_i is the
  product of 1 - beta_0, ..., 1 - beta_i, and f(t) = cos^2((t + 0.008) / 1.008
  pi / 2) (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17). The numbers are
  Python floats of 64 bits.
  """
  f = lambda i: math.cos((i / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
  table, log_abar = [], 0.0
  for i in range(STEPS):
    log_abar += math.log1p(-min(1 - f(i + 1) / f(i), 0.999))
    table.append(log_abar - math.log(-math.expm1(log_abar)))
  return tuple(table)


@dataclasses.dataclass(frozen=True)
class DiscreteCosineSchedule:
  """Looks up DeepFloyd IF's table: cosine_table at the step nearest to 1000 t.

  The table has no step 1000: t = 1 is step 999.
  """

  def __call__(self, t: jax.Array) -> jax.Array:
    """Returns logsnr of the step nearest to 1000 t; t in [0, 1]."""
    step = jnp.round(STEPS * jnp.asarray(t, jnp.float32)).astype(jnp.int32)
    table = jnp.array(cosine_table(), jnp.float32)
    return table[jnp.clip(step, 0, STEPS - 1)]

  def inverse(self, logsnr: jax.Array) -> jax.Array:
    """Returns the step of the nearest logsnr, divided by 1000."""
    table = jnp.array(cosine_table(), jnp.float32)
    # Negated, since searchsorted expects ascending numbers.
    borders = -(table[1:] + table[:-1]) / 2
    step = jnp.searchsorted(borders, -jnp.asarray(logsnr, jnp.float32))
    return step.astype(jnp.float32) / STEPS

  def from_uniform(self, u: jax.Array) -> jax.Array:
    """Returns floor(1000 u) / 1000, so that all 1000 steps are equally likely.

    Rounding instead would draw step 0 half as often as other steps, and step
    999 one and a half times as often.
    """
    step = jnp.floor(STEPS * jnp.asarray(u, jnp.float32))
    return jnp.minimum(step, STEPS - 1) / STEPS


def alpha_sigma(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns alpha = sqrt(sigmoid(logsnr)) and sigma = sqrt(sigmoid(-logsnr)).

  Their squares sum to one.
  """
  logsnr = jnp.asarray(logsnr, jnp.float32)
  alpha = jnp.sqrt(jax.nn.sigmoid(logsnr))
  sigma = jnp.sqrt(jax.nn.sigmoid(-logsnr))
  return alpha, sigma
