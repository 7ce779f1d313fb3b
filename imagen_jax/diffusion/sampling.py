"""Settings for sampling from a stage, and the times that they ask for."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.guidance import DynamicThreshold, Threshold
from imagen_jax.diffusion.samplers import Ancestral, Sampler
from imagen_jax.diffusion.schedules import STEPS

UNIFORM_STEPS = 256


class SamplingArgs(NamedTuple):
  """Sampling as arguments of a jitted function, which compiles once for all.

  Other values need no other program; another structure does: a None in place
  of a number, another kind of sampler or threshold.

  steps: int [], the number of steps.
  timesteps: int32 [1000], the first `steps` of which are meant; or None.
  guidance: float [], or None for no guidance.
  step: the sampler, its numbers float [].
  threshold: the threshold, its numbers float [].
  aug_level: float [].
  """

  steps: int | jax.Array
  timesteps: jax.Array | None
  guidance: float | jax.Array | None
  step: Sampler
  threshold: Threshold
  aug_level: float | jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Settings for sampling from a stage.

  steps: the number of steps, uniform in t; 256 if neither it nor timesteps is
    given (not in the paper, which does not state the number).
  guidance: the weight w of Eq. 2; 1 is no guidance.
  step: the sampler.
  threshold: acts on x_hat after guidance (Sec. 2.3).
  aug_level: the noise given to the low-resolution image, in [0, 1] (Sec. 2.4).
  timesteps: whole steps of 999..0, decreasing, in place of `steps`.
  """

  steps: int | None = None
  guidance: float = 5.0
  step: Sampler = Ancestral()
  threshold: Threshold = DynamicThreshold()
  aug_level: float = 0.0
  timesteps: tuple[int, ...] | None = None

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


def time(
  i: jax.Array,
  steps: int | jax.Array,
  timesteps: jax.Array | None = None,
) -> jax.Array:
  """Returns the time t at which step i of 0, ..., steps - 1 asks the net.

  t = 1 - i / steps (App. A), or timesteps[i] / 1000 of a list of whole steps
  [n], n >= steps. Step `steps` is where the last step would go, which it does
  not: it returns x_hat.
  """
  if timesteps is None:
    return 1 - jnp.asarray(i, jnp.float32) / jnp.asarray(steps, jnp.float32)
  listed = jnp.asarray(timesteps)[jnp.minimum(i, steps - 1)]
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
