"""Settings for sampling from a stage, and the times that they ask for."""

import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.guidance import DynamicThreshold, Threshold
from imagen_jax.diffusion.samplers import Ancestral, Sampler
from imagen_jax.diffusion.schedules import STEPS, Schedule

UNIFORM_STEPS = 256


class Grid(Protocol):
  """A rule that spreads the steps over the time; a pytree of its numbers."""

  def __call__(
    self, i: jax.Array, steps: int | jax.Array, schedule: Schedule
  ) -> jax.Array:
    """Returns the time t in [0, 1] of step i of 0, ..., steps."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniformTime:
  """Spreads the steps evenly over t: t = 1 - i / steps (App. A)."""

  def __call__(
    self, i: jax.Array, steps: int | jax.Array, schedule: Schedule
  ) -> jax.Array:
    """Returns t of step i; step `steps` is t = 0."""
    return 1 - jnp.asarray(i, jnp.float32) / jnp.asarray(steps, jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UniformLogSNR:
  """Spreads the steps evenly over log-SNR, from t_first to t_last.

  Not in the paper: DPM-Solver++ expands in log-SNR, so its error is smaller on
  this grid than on one that is uniform in t (Lu et al. 2022). Near t = 1 images
  are pure noise over a wide range of log-SNR: a t_first of 0.995 spares the
  steps there. Levels of a table are the nearest of the table.
  """

  t_first: float = 1.0  # the time of the first step, in (t_last, 1]
  t_last: float = 0.01  # the time of the last step, in (0, t_first)

  def __post_init__(self):
    # Arrays come from a jitted function, whose caller had them checked.
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
    # The ends exactly: an inverse is as exact as float32.
    level = jnp.where(share == 0, self.t_first, level)
    return jnp.where(share == 1, self.t_last, level)


class SamplingArgs(NamedTuple):
  """Sampling as arguments of a jitted function, which compiles once for all.

  Other values need no other program; another structure does: a None in place
  of a number, another kind of sampler or threshold.

  steps: int [], the number of steps.
  timesteps: int32 [1000], the first `steps` of which are meant; or None.
  grid: where the steps lie if there are no timesteps, its numbers float [].
  guidance: float [], or None for no guidance.
  step: the sampler, its numbers float [].
  threshold: the threshold, its numbers float [].
  aug_level: float [].
  """

  steps: int | jax.Array
  timesteps: jax.Array | None
  grid: Grid
  guidance: float | jax.Array | None
  step: Sampler
  threshold: Threshold
  aug_level: float | jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Settings for sampling from a stage.

  steps: the number of steps; 256 if neither it nor timesteps is given (not in
    the paper, which does not state the number).
  guidance: the weight w of Eq. 2; 1 is no guidance.
  step: the sampler.
  threshold: acts on x_hat after guidance (Sec. 2.3).
  aug_level: the noise given to the low-resolution image, in [0, 1] (Sec. 2.4).
  timesteps: whole steps of 999..0, decreasing, in place of `steps` and grid.
  grid: where the steps lie.
  """

  steps: int | None = None
  guidance: float = 5.0
  step: Sampler = Ancestral()
  threshold: Threshold = DynamicThreshold()
  aug_level: float = 0.0
  timesteps: tuple[int, ...] | None = None
  grid: Grid = UniformTime()

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

  @property
  def num_steps(self) -> int:
    """The number of steps."""
    if self.timesteps is not None:
      return len(self.timesteps)
    return self.steps or UNIFORM_STEPS

  def args(self) -> SamplingArgs:
    """Returns the values as arguments of one type, whatever they are."""
    timesteps = self.timesteps
    if timesteps is not None:
      rest = (0,) * (STEPS - len(timesteps))
      timesteps = jnp.array(timesteps + rest, jnp.int32)
    return SamplingArgs(
      steps=self.num_steps,
      timesteps=timesteps,
      grid=jax.tree.map(float, self.grid),
      guidance=None if self.guidance == 1 else float(self.guidance),
      step=jax.tree.map(float, self.step),
      threshold=jax.tree.map(float, self.threshold),
      aug_level=float(self.aug_level),
    )

  def replace(self, **changes: Any) -> "Sampling":
    """Returns changed settings; steps take the place of timesteps, and back."""
    for given, other in (("steps", "timesteps"), ("timesteps", "steps")):
      if changes.get(given) is not None:
        changes.setdefault(other, None)
    return dataclasses.replace(self, **changes)


def time(i: jax.Array, sampling: SamplingArgs, schedule: Schedule) -> jax.Array:
  """Returns the time t at which step i of 0, ..., steps - 1 asks the net.

  Step `steps` is where the last step would go, which it does not: it returns
  x_hat.
  """
  if sampling.timesteps is None:
    return sampling.grid(i, sampling.steps, schedule)
  listed = jnp.asarray(sampling.timesteps)[jnp.minimum(i, sampling.steps - 1)]
  return listed.astype(jnp.float32) / STEPS


def check_timesteps(timesteps: tuple[int, ...]) -> None:
  """Raises ValueError for steps that do not go down within 999..0."""
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
