"""Imagen (Saharia et al. 2022) in JAX: text in, images out."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
  """Returns imagen_jax.train, the first time that it is asked for.

  Importing the package imports nothing else, JAX neither.
  """
  if name != "train":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return importlib.import_module(f"{__name__}.train")
