"""The configs that come with imagen_jax; README.md describes each of them."""

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
  """Finds base64 under its new name, for configs that import it."""
  if name == "base64":
    return importlib.import_module(f"{__name__}.base_64")
  raise AttributeError(f"there is no config {name!r}")
