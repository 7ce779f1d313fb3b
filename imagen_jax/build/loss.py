"""config.stage -> the weights of the loss and the draw of its times."""

from collections.abc import Mapping
from typing import Any

from imagen_jax.build.keys import pick, settings
from imagen_jax.diffusion import weighting

WEIGHTINGS = {
  "uniform": weighting.Uniform,
  "min_snr": weighting.MinSNR,
  "sigmoid": weighting.Sigmoid,
}
TIMES = {
  "independent": weighting.independent_times,
  "even": weighting.even_times,
}


def loss_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns the fields `weighting` and `times` of a Stage that config sets.

  ValueError for an unknown kind or key.
  """
  found = {}
  if "weighting" in config:
    chosen = settings(config["weighting"], f"{where}.weighting", WEIGHTINGS)
    found["weighting"] = chosen
  if "times" in config:
    found["times"] = pick(config["times"], f"config {where}.times", TIMES)
  return found
