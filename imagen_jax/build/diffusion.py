"""The stage and the sampling settings that a config describes."""

from collections.abc import Mapping
from typing import Any

from imagen_jax.build.keys import fields, fill, pick, section, settings
from imagen_jax.build.nets import net
from imagen_jax.diffusion import (
  gaussian,
  guidance,
  samplers,
  schedules,
  weighting,
)
from imagen_jax.diffusion.augment import bilinear_aligned
from imagen_jax.diffusion.sampling import UniformLogSNR, UniformTime
from imagen_jax.interop import deepfloyd_if
from imagen_jax.stage import Sampling, Stage

SCHEDULES = {
  "cosine": schedules.CosineSchedule,
  "linear": schedules.LinearSchedule,
  "discrete_cosine": schedules.DiscreteCosineSchedule,
}
PREDICTIONS = {"eps": gaussian.EPS, "x": gaussian.X, "v": gaussian.V}
UPSAMPLE = {"bilinear_aligned": bilinear_aligned}
WEIGHTINGS = {
  "uniform": weighting.Uniform,
  "min_snr": weighting.MinSNR,
  "sigmoid": weighting.Sigmoid,
}
TIMES = {
  "independent": weighting.independent_times,
  "even": weighting.even_times,
}
SAMPLERS = {
  "ddim": samplers.DDIM,
  "ancestral": samplers.Ancestral,
  "ancestral_learned": samplers.LearnedAncestral,
  "dpm_solver++": samplers.DPMSolver,
}
THRESHOLDS = {
  "none": guidance.NoThreshold,
  "static": guidance.StaticThreshold,
  "dynamic": guidance.DynamicThreshold,
}
GRIDS = {"time": UniformTime, "logsnr": UniformLogSNR}
# Keys whose values are names (NAMES), or sub-configs with a `kind` (KINDS).
STAGE_NAMES = {
  "prediction": PREDICTIONS,
  "loss_space": PREDICTIONS,
  "upsample": UPSAMPLE,
  "times": TIMES,
}
# Keys of older configs, by which a resumed run's changes are compared too
# (checkpoints/config_changes.py).
OLD_STAGE_KEYS = {"enlarge": "upsample"}
STAGE_KINDS = {
  "schedule": SCHEDULES,
  "aug_schedule": SCHEDULES,
  "weighting": WEIGHTINGS,
}
SAMPLING_KINDS = {"step": SAMPLERS, "threshold": THRESHOLDS, "grid": GRIDS}


def stage(config: Mapping[str, Any], where: str = "stage") -> Stage:
  """Returns the stage that config.stage describes."""
  config = {
    OLD_STAGE_KEYS.get(key, key): value
    for key, value in section(config, where).items()
  }
  resolved = {"net": net(config.get("net"), f"{where}.net")}
  for key, options in STAGE_KINDS.items():
    if key in config:
      resolved[key] = settings(config[key], f"{where}.{key}", options)
  for key, options in STAGE_NAMES.items():
    if key in config and (key != "upsample" or config[key] is not None):
      resolved[key] = pick(config[key], f"config {where}.{key}", options)
  return fill(Stage, config, where, fields(Stage), **resolved)


def sampling(config: Mapping[str, Any], where: str = "sampling") -> Sampling:
  """Returns the settings that config.sampling describes."""
  resolved = {}
  for key, options in SAMPLING_KINDS.items():
    if key in section(config, where):
      resolved[key] = settings(config[key], f"{where}.{key}", options)
  if isinstance(name := config.get("timesteps"), str):
    what = f"config {where}.timesteps"
    resolved["timesteps"] = pick(name, what, deepfloyd_if.TIMESTEPS)
  return fill(Sampling, config, where, fields(Sampling), **resolved)
