"""The training run that a stage's config describes, and its settings."""

from collections.abc import Mapping
from typing import Any

from imagen_jax.build.diffusion import sampling, stage
from imagen_jax.build.keys import (
  as_tuple,
  check_names,
  fields,
  fill,
  kind,
  section,
)
from imagen_jax.build.nets import stored_text, text
from imagen_jax.parallel.mesh import MeshShape
from imagen_jax.training.optimizers import Adafactor, Adam, Optimizer
from imagen_jax.training.settings import Data, Part, Training
from imagen_jax.training.setup import Run

OPTIMIZERS = {"adam": Adam, "adafactor": Adafactor}
# The keys of a stage's config.
STAGE_KEYS = (
  "text",
  "stage",
  "data",
  "optimizer",
  "train",
  "mesh",
  "sampling",
  "weights",
)


def run(config: Mapping[str, Any]) -> Run:
  """Returns the training run that a stage's config describes.

  Raises:
    ValueError: there is a mistake anywhere in the config.
  """
  check_keys(config)
  examples = data(config["data"])
  return Run(
    stage=stage(config["stage"]),
    text=stored_text(text(config["text"]), config, examples.embeddings),
    data=examples,
    training=training(config["train"]),
    sampling=sampling(config["sampling"]),
    optimizer=optimizer(config["optimizer"]),
    mesh=mesh(config),
  )


def check_keys(config: Mapping[str, Any]) -> None:
  """Raises ValueError for a key that is unknown or missing."""
  if "stages" in config:
    raise ValueError(
      "the config is of a cascade, expected that of one of its stages, such as"
      " configs/shapes16.py: stages are trained one by one"
    )
  check_names(config, "", STAGE_KEYS)


def data(config: Mapping[str, Any]) -> Data:
  """Returns the settings that config.data describes."""
  resolved = {}
  mixture = as_tuple(section(config, "data").get("mixture"))
  if isinstance(mixture, tuple):
    resolved["mixture"] = tuple(
      fill(Part, part, f"data.mixture[{i}]", fields(Part))
      for i, part in enumerate(mixture)
    )
  return fill(Data, config, "data", fields(Data), **resolved)


def training(config: Mapping[str, Any]) -> Training:
  """Returns the settings that config.train describes."""
  return fill(Training, config, "train", fields(Training))


def optimizer(config: Mapping[str, Any]) -> Optimizer:
  """Returns the optimizer that config.optimizer describes."""
  cls, rest = kind(config, "optimizer", OPTIMIZERS)
  return fill(cls, rest, "optimizer", fields(cls))


def mesh(config: Mapping[str, Any]) -> MeshShape:
  """Returns the mesh of config.mesh; without it, weights are replicated."""
  return fill(MeshShape, config.get("mesh", {}), "mesh", fields(MeshShape))
