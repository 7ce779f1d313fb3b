"""Loss weightings over log-SNR, and draws of training times (Eq. 4).

Eq. 4 is E_t[w_t ||x_hat - x||^2] with t uniform in [0, 1]. A weighting returns
the factor of the squared error in any space (`Prediction`). The loss is thus
the same in every space:

  w_x = w_eps SNR,  w_v = w_eps SNR / (1 + SNR),  SNR = exp(logsnr).
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.gaussian import Prediction
from imagen_jax.diffusion.schedules import DiscreteCosineSchedule, Schedule


class Weighting(Protocol):
  """A weight for every noise level of a batch."""

  def __call__(
    self, logsnr: jax.Array, *, space: Prediction, schedule: Schedule
  ) -> jax.Array:
    """Returns the factors [B] of squared errors measured in `space`.

    logsnr [B] belongs to times drawn uniformly from the schedule.
    """


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Weighs all times equally, in whichever space the error is measured.

  In eps space this is the paper's loss (App. A).
  """

  def __call__(
    self, logsnr: jax.Array, *, space: Prediction, schedule: Schedule
  ) -> jax.Array:
    """Returns ones [B]."""
    return jnp.ones_like(logsnr)


@dataclasses.dataclass(frozen=True)
class MinSNR:
  """Weighs the error of x by min(SNR, gamma).

  Hang et al. 2023 (arXiv:2303.09556). The weight is min(1, gamma / SNR) in eps
  space and min(SNR, gamma) / (1 + SNR) in v space.

  Not in the paper: it suits a net that predicts x. A uniform weight in eps
  space falls nearly all on low noise, and a uniform weight in x space nearly
  all on high noise.
  """

  gamma: float = 5.0  # the SNR above which the weight of x is constant

  def __post_init__(self):
    if not 0 < self.gamma < math.inf:
      raise ValueError(f"gamma is {self.gamma}, expected more than 0")

  def __call__(
    self, logsnr: jax.Array, *, space: Prediction, schedule: Schedule
  ) -> jax.Array:
    """Returns min(1, gamma / SNR) / error_ratio(logsnr) [B]."""
    of_eps = jnp.exp(jnp.minimum(0.0, math.log(self.gamma) - logsnr))
    return of_eps / space.error_ratio(logsnr)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
  """Weighs the error of eps by sigmoid(bias - logsnr), uniformly in log-SNR.

  Not in the paper: Kingma & Gao 2023 (arXiv:2303.00848) integrate over logsnr
  instead of t, so the weight contains -d logsnr / dt. Because it falls with
  logsnr, the loss is a likelihood bound on noised data. For a net that predicts
  x, choose a schedule that ends near logsnr 10: the weight of its error grows
  as exp(logsnr / 2) at low noise.
  """

  bias: float = 2.0  # the logsnr at which the sigmoid is one half

  def __post_init__(self):
    if not math.isfinite(self.bias):
      raise ValueError(f"bias is {self.bias}, expected a number")

  def __call__(
    self, logsnr: jax.Array, *, space: Prediction, schedule: Schedule
  ) -> jax.Array:
    """Returns -d logsnr/dt sigmoid(bias - logsnr) / error_ratio(logsnr) [B].

    Raises:
      ValueError: if the schedule has no derivative.
    """
    if isinstance(schedule, DiscreteCosineSchedule):
      raise ValueError(
        "weighting is sigmoid, expected a schedule with a derivative, not"
        f" {schedule}"
      )
    time = schedule.inverse(logsnr)
    _, slope = jax.jvp(schedule, (time,), (jnp.ones_like(time),))
    of_eps = -slope * jax.nn.sigmoid(self.bias - logsnr)
    return of_eps / space.error_ratio(logsnr)


def independent_times(key: jax.Array, batch: int) -> jax.Array:
  """Draws each time of a batch independently: t_i ~ U[0, 1), [batch]."""
  return jax.random.uniform(key, (batch,))


def even_times(key: jax.Array, batch: int) -> jax.Array:
  """Draws evenly spaced times: t_i = (u + i / batch) mod 1, [batch].

  Not in the paper: the low-discrepancy draw of VDM (Kingma et al. 2021,
  arXiv:2107.00630) lowers the variance of a batch's loss. Each t_i alone is
  uniform.
  """
  u = jax.random.uniform(key, ())
  return (u + jnp.arange(batch) / batch) % 1.0
