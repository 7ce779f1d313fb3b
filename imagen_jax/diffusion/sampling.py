"""How to sample from a stage."""

import dataclasses
import math
from collections.abc import Callable

import jax

from imagen_jax.diffusion import timesteps
from imagen_jax.diffusion.guidance import DynamicThreshold
from imagen_jax.diffusion.samplers import AncestralStep

UNIFORM_STEPS = 256


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to sample from a stage; hashable, so that it is static under jit.

  Where to ask the net: at so many `steps`, uniform in t, or at `timesteps`,
  whole steps of 999..0 or the name of one of DeepFloyd's lists; 256 uniform
  ones if neither is given. guidance w is the paper's: 1 is none. step is a
  sampler, threshold(x_hat) -> x_hat acts after guidance. aug_level in [0, 1]
  is the noise given to the low-res picture. The numbers are ours where the
  paper is silent (steps, gamma).
  """

  steps: int | None = None
  guidance: float = 5.0
  step: Callable = AncestralStep()
  threshold: Callable = DynamicThreshold()
  aug_level: float = 0.0
  timesteps: str | tuple[int, ...] | None = None

  def __post_init__(self):
    if self.steps is not None and self.steps < 1:
      raise ValueError(f"steps is {self.steps}, expected at least 1")
    if self.timesteps is not None:
      timesteps.check(self.timesteps)
      if self.steps is not None:
        raise ValueError(
          f"steps is {self.steps} beside timesteps, expected one of the two"
        )
    if not math.isfinite(self.guidance):
      raise ValueError(f"guidance is {self.guidance}, expected a number")
    if not 0 <= self.aug_level <= 1:
      raise ValueError(f"aug_level is {self.aug_level}, expected 0 to 1")

  @property
  def times(self) -> jax.Array:
    """The times t at which the net is asked, from 1 on down: [n]."""
    if self.timesteps is not None:
      return timesteps.listed(self.timesteps)
    return timesteps.uniform(self.steps or UNIFORM_STEPS)

  def replace(self, **changes) -> "Sampling":
    """With settings changed; steps take the place of timesteps, and back."""
    for given, other in (("steps", "timesteps"), ("timesteps", "steps")):
      if changes.get(given) is not None:
        changes.setdefault(other, None)
    return dataclasses.replace(self, **changes)
