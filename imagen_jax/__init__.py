"""Imagen (Saharia et al. 2022) in JAX: text in, images out.

  import imagen_jax

  imagen = imagen_jax.load("shapes")
  imagen.sample("two red circles above a blue square on a yellow background")

Importing the package does not import JAX or any other large package. Each name
below is imported on first use.
"""

import importlib
from typing import Any

__version__ = "0.2.0"
__all__ = ["Imagen", "Samples", "load", "prepare", "train"]

_HOMES = {"Imagen": "imagen", "Samples": "samples", "load": "imagen"}


def __getattr__(name: str) -> Any:
  """Imports a public name on first use (PEP 562)."""
  if name in ("prepare", "train"):  # the verbs' modules; train is callable
    return importlib.import_module(f"{__name__}.{name}")
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
