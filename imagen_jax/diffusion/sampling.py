"""Sampling settings of a stage, and the times of its steps."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.guidance import (
  DynamicThreshold,
  Threshold,
  guide,
  rescale,
  within,
)
from imagen_jax.diffusion.samplers import Ancestral, Sampler
from imagen_jax.diffusion.schedules import STEPS, Schedule

UNIFORM_STEPS = 256


# Called with z [B, ...] and logsnr [B], returns x_hat and a learned v or None.
Predict = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]


class Grid(Protocol):
  """A rule that places the steps in time; a pytree of its numbers."""

  def __call__(
    self, i: jax.Array, steps: int | jax.Array, schedule: Schedule
  ) -> jax.Array:
    """Returns the time t in [0, 1] of step i of 0, ..., steps."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniformTime:
  """Spaces the steps evenly in t: t = 1 - i / steps (App. A)."""

  def __call__(
    self, i: jax.Array, steps: int | jax.Array, schedule: Schedule
  ) -> jax.Array:
    """Returns t of step i; step `steps` is t = 0."""
    return 1 - jnp.asarray(i, jnp.float32) / jnp.asarray(steps, jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniformLogSNR:
  """Spaces the steps evenly in log-SNR, from t_first to t_last.

  Not in the paper: DPM-Solver++ expands in log-SNR, so its error is smaller on
  this grid than on a uniform grid in t (Lu et al. 2022, arXiv:2211.01095). Near
  t = 1 images are pure noise over a wide range of log-SNR: t_first = 0.995
  saves the steps there. A discrete schedule rounds to its nearest level.
  """

  t_first: float = 1.0  # the time of the first step, in (t_last, 1]
  t_last: float = 0.01  # the time of the last step, in (0, t_first)

  def __post_init__(self):
    # Arrays are not checked: they come from a jitted function, whose caller
    # checked the numbers.
    numbers = isinstance(self.t_first, int | float) and isinstance(
      self.t_last, int | float
    )
    if numbers and not 0 < self.t_last < self.t_first <= 1:
      raise ValueError(
        f"t_first is {self.t_first} and t_last {self.t_last}, expected 0 <"
        " t_last < t_first <= 1"
      )

  def __call__(
    self, i: jax.Array, steps: int | jax.Array, schedule: Schedule
  ) -> jax.Array:
    """Returns t of step i; steps - 1 and beyond are t_last."""
    first, last = schedule(self.t_first), schedule(self.t_last)
    final = jnp.maximum(jnp.asarray(steps, jnp.float32) - 1, 1)
    share = jnp.minimum(jnp.asarray(i, jnp.float32) / final, 1)
    level = schedule.inverse(first + share * (last - first))
    # The inverse has float32's error, so the two ends are set exactly.
    level = jnp.where(share == 0, self.t_first, level)
    return jnp.where(share == 1, self.t_last, level)


class SamplingArgs(NamedTuple):
  """Holds Sampling as arguments of a jitted function.

  Other values compile nothing. Another structure does: None in place of a
  number, or another class of grid, sampler or threshold.

  Attributes:
    steps: int [], the number of steps.
    timesteps: int32 [1000], of which the first `steps` count; or None.
    grid: the times of the steps without timesteps; its numbers are float [].
    guidance: float [], the weight w of Eq. 2; None for no guidance.
    step: the sampler; its numbers are float [].
    threshold: the threshold on x_hat; its numbers are float [].
    aug_level: float [] in [0, 1].
    guidance_interval: float [], float [], the log-SNR between which guidance
      acts; None for everywhere.
    guidance_rescale: float [], phi of guidance.rescale; None for 0.
  """

  steps: int | jax.Array
  timesteps: jax.Array | None
  grid: Grid
  guidance: float | jax.Array | None
  step: Sampler
  threshold: Threshold
  aug_level: float | jax.Array
  guidance_interval: tuple[float | jax.Array, float | jax.Array] | None = None
  guidance_rescale: float | jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Describes how to sample from a stage.

  Attributes:
    steps: the number of steps; 256 if neither steps nor timesteps is given. Not
      in the paper: it does not state the number.
    guidance: the weight w of Eq. 2; 1 is no guidance.
    step: the sampler.
    threshold: bounds x_hat after guidance (Sec. 2.3).
    aug_level: the augmentation level of the low-resolution image, in [0, 1]
      (Sec. 2.4).
    timesteps: integers of 999..0, decreasing; they replace steps and grid.
    grid: the times of the steps.
    guidance_interval: the log-SNR (low, high) between which guidance acts, both
      included; None for everywhere. Not in the paper. A step outside takes one
      evaluation of the net, with the prompt, instead of two.
    guidance_rescale: phi of guidance.rescale, in [0, 1]. Not in the paper; 0
      is off.
  """

  steps: int | None = None
  guidance: float = 5.0
  step: Sampler = Ancestral()
  threshold: Threshold = DynamicThreshold()
  aug_level: float = 0.0
  timesteps: tuple[int, ...] | None = None
  grid: Grid = UniformTime()
  guidance_interval: tuple[float, float] | None = None
  guidance_rescale: float = 0.0

  def __post_init__(self):
    if self.steps is not None and self.steps < 1:
      raise ValueError(f"steps is {self.steps}, expected at least 1")
    if self.timesteps is not None:
      check_timesteps(self.timesteps)
      if self.steps is not None:
        raise ValueError(
          f"steps is {self.steps} beside timesteps, expected one of the two"
        )
    if not math.isfinite(self.guidance):
      raise ValueError(f"guidance is {self.guidance}, expected a number")
    if not 0 <= self.aug_level <= 1:
      raise ValueError(f"aug_level is {self.aug_level}, expected 0 to 1")
    if self.guidance_interval is not None:
      check_interval(self.guidance_interval)
    if not 0 <= self.guidance_rescale <= 1:
      raise ValueError(
        f"guidance_rescale is {self.guidance_rescale}, expected 0 to 1"
      )

  @property
  def num_steps(self) -> int:
    """The number of steps."""
    if self.timesteps is not None:
      return len(self.timesteps)
    return self.steps or UNIFORM_STEPS

  def args(self) -> SamplingArgs:
    """Returns the settings as arguments of fixed types."""
    timesteps = self.timesteps
    if timesteps is not None:
      rest = (0,) * (STEPS - len(timesteps))
      timesteps = jnp.array(timesteps + rest, jnp.int32)
    guided = self.guidance != 1
    interval = self.guidance_interval if guided else None
    return SamplingArgs(
      steps=self.num_steps,
      timesteps=timesteps,
      grid=jax.tree.map(float, self.grid),
      guidance=float(self.guidance) if guided else None,
      step=jax.tree.map(float, self.step),
      threshold=jax.tree.map(float, self.threshold),
      aug_level=float(self.aug_level),
      guidance_interval=jax.tree.map(float, interval),
      guidance_rescale=(
        float(self.guidance_rescale)
        if guided and self.guidance_rescale
        else None
      ),
    )

  def replace(self, **changes: Any) -> "Sampling":
    """Returns changed settings; steps replaces timesteps and vice versa."""
    for given, other in (("steps", "timesteps"), ("timesteps", "steps")):
      if changes.get(given) is not None:
        changes.setdefault(other, None)
    return dataclasses.replace(self, **changes)


def time(i: jax.Array, sampling: SamplingArgs, schedule: Schedule) -> jax.Array:
  """Returns the time t of step i of 0, ..., steps - 1, an input of the net.

  At i = steps the time is that after the final step, which no sampler uses: the
  final step returns x_hat.
  """
  if sampling.timesteps is None:
    return sampling.grid(i, sampling.steps, schedule)
  listed = jnp.asarray(sampling.timesteps)[jnp.minimum(i, sampling.steps - 1)]
  return listed.astype(jnp.float32) / STEPS


def guided(
  both: Predict, alone: Predict | None, sampling: SamplingArgs
) -> Predict:
  """Returns a prediction with guidance, of one or two evaluations of a net.

  Args:
    both: predicts x_hat of a doubled batch: prompts first, then the null text.
    alone: predicts x_hat with the prompts; None is enough without an interval.
    sampling: the settings, with guidance.
  """
  interval, phi = sampling.guidance_interval, sampling.guidance_rescale

  def predict(z: jax.Array, logsnr: jax.Array) -> tuple[jax.Array, Any]:
    twice = jnp.concatenate([z, z]), jnp.concatenate([logsnr, logsnr])
    x_hat, v = both(*twice)
    cond, uncond = jnp.split(x_hat, 2)
    w = sampling.guidance
    if interval is not None:
      w = jnp.where(within(logsnr, interval), w, 1.0)
    x_hat = guide(cond, uncond, w)
    if phi is not None:
      x_hat = rescale(x_hat, cond, phi)
    return x_hat, None if v is None else v[: z.shape[0]]

  def predict_inside(z: jax.Array, logsnr: jax.Array) -> tuple[jax.Array, Any]:
    # A conditional runs one branch: outside, the null text is skipped.
    return jax.lax.cond(
      within(logsnr, interval).any(), predict, alone, z, logsnr
    )

  return predict if interval is None else predict_inside


def check_interval(interval: tuple[float, float]) -> None:
  """Checks that an interval of log-SNR has two ends in order.

  Raises:
    ValueError: if it has other than two numbers, or is empty.
  """
  if len(interval) != 2 or not interval[0] < interval[1]:
    raise ValueError(
      f"guidance_interval is {interval}, expected two log-SNR, the lower first,"
      " such as (-1, 2.5)"
    )


def check_timesteps(timesteps: tuple[int, ...]) -> None:
  """Checks that timesteps decrease within 999..0.

  Raises:
    ValueError: if there are none, or one is out of range or out of order.
  """
  last = STEPS
  for step in timesteps:
    if not 0 <= step < last:
      raise ValueError(
        f"timesteps has {step} after {last}, expected steps of 999..0, each "
        "less than the one before it"
        if last < STEPS
        else f"timesteps begins with {step}, expected a step of 999..0"
      )
    last = step
  if not timesteps:
    raise ValueError("timesteps has no step, expected at least one")
