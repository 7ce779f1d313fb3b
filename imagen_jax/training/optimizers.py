"""The paper's optimizers and learning rate (Sec. 4.1, App. F).

The listing of App. F does not run as printed: its `end_value=2500000` should
be 0, and the optimizers take neither `lrs` nor, Adam, `weight_decay`.
decay_steps is the whole length in optax's sense, warm-up included.
"""

import math

import optax


def learning_rate(
  *,
  peak: float = 1e-4,
  warmup_steps: int = 10_000,
  decay_steps: int = 2_500_000,
) -> optax.Schedule:
  """Linear warm-up from 0, then cosine decay to 0 at decay_steps."""
  if not 0 < peak < math.inf:
    raise ValueError(f"learning_rate is {peak}, expected more than 0")
  if not 0 <= warmup_steps < decay_steps:
    raise ValueError(
      f"warmup_steps is {warmup_steps}, expected fewer than decay_steps, "
      f"{decay_steps}"
    )
  return optax.warmup_cosine_decay_schedule(
    0.0, peak, warmup_steps, decay_steps, end_value=0.0
  )


def adafactor(
  schedule: optax.Schedule, *, multiply_by_parameter_scale: bool = True
) -> optax.GradientTransformation:
  """The base stage's: optax's defaults, as the paper says.

  They scale a step by the parameter's own RMS, at least 1e-3: a layer that
  starts at zero learns a thousand times slower. Over millions of steps that
  is no matter; a short run wants multiply_by_parameter_scale=False.
  """
  return optax.adafactor(
    schedule, multiply_by_parameter_scale=multiply_by_parameter_scale
  )


def adam(
  schedule: optax.Schedule, *, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
  """The super-resolution stages': eps 1e-8 and no weight decay."""
  return optax.adam(schedule, b1=b1, b2=b2, eps=1e-8)


def with_clipping(
  optimizer: optax.GradientTransformation, max_norm: float | None
) -> optax.GradientTransformation:
  """Clips the gradient's global norm first; None, the default, does not.

  The paper is silent on clipping.
  """
  if max_norm is None:
    return optimizer
  if not max_norm > 0:
    raise ValueError(f"clip_norm is {max_norm}, expected more than 0")
  return optax.chain(optax.clip_by_global_norm(max_norm), optimizer)
