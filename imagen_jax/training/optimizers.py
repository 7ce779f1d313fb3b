"""The paper's optimizers and learning rate (Sec. 4.1, App. F).

The listing of App. F does not run as printed. Its `end_value=2500000` should
be 0, no optimizer takes `lrs`, and Adam takes no `weight_decay`.
"""

import abc
import dataclasses
import math
from typing import Any

import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
  """Holds the settings of all optimizers; has optax's `init` and `update`.

  Attributes:
    learning_rate: the peak, at the end of the warm-up.
    warmup_steps: updates of linear warm-up from 0.
    decay_steps: updates until the cosine decay reaches 0, including the
      warm-up, as in optax.
    clip_norm: the largest global norm of the gradient. None, the default, does
      not clip. Not in the paper, which does not mention clipping.
  """

  learning_rate: float = 1e-4
  warmup_steps: int = 10_000
  decay_steps: int = 2_500_000
  clip_norm: float | None = None

  def __post_init__(self):
    if not 0 < self.learning_rate < math.inf:
      raise ValueError(
        f"learning_rate is {self.learning_rate}, expected more than 0"
      )
    if not 0 <= self.warmup_steps < self.decay_steps:
      raise ValueError(
        f"warmup_steps is {self.warmup_steps}, expected fewer than "
        f"decay_steps, {self.decay_steps}"
      )
    if self.clip_norm is not None and not self.clip_norm > 0:
      raise ValueError(f"clip_norm is {self.clip_norm}, expected more than 0")

  @property
  def schedule(self) -> optax.Schedule:
    """The learning rate as a function of the number of updates, from 0."""
    return optax.warmup_cosine_decay_schedule(
      0.0,
      self.learning_rate,
      self.warmup_steps,
      self.decay_steps,
      end_value=0.0,
    )

  def init(self, params: Any) -> optax.OptState:
    """Returns the optimizer's state before the first update of params."""
    return self._transformation().init(params)

  def update(
    self, grads: Any, state: optax.OptState, params: Any = None
  ) -> tuple[Any, optax.OptState]:
    """Returns the updates to add to params, and the optimizer's next state."""
    return self._transformation().update(grads, state, params)

  @abc.abstractmethod
  def _rule(self) -> optax.GradientTransformation:
    """Returns the optimizer without clipping."""

  def _transformation(self) -> optax.GradientTransformation:
    if self.clip_norm is None:
      return self._rule()
    return optax.chain(optax.clip_by_global_norm(self.clip_norm), self._rule())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
  """Adam of the super-resolution stages: eps 1e-8, no weight decay (App. F).

  Attributes:
    b1: decay of the gradient's mean, in [0, 1).
    b2: decay of the squared gradient's mean, in [0, 1).
  """

  b1: float = 0.9
  b2: float = 0.999

  def __post_init__(self):
    super().__post_init__()
    for name in ("b1", "b2"):
      value = getattr(self, name)
      if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}, expected at least 0, less than 1")

  def _rule(self) -> optax.GradientTransformation:
    return optax.adam(self.schedule, b1=self.b1, b2=self.b2, eps=1e-8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
  """Adafactor of the base stage, with optax's defaults (App. F.1).

  Attributes:
    multiply_by_parameter_scale: scales an update by the parameter's RMS, at
      least 1e-3. A layer that starts at zero then learns a thousand times
      slower, which does not matter over millions of steps. Use False for a
      short run.
  """

  multiply_by_parameter_scale: bool = True

  def _rule(self) -> optax.GradientTransformation:
    return optax.adafactor(
      self.schedule,
      multiply_by_parameter_scale=self.multiply_by_parameter_scale,
    )
