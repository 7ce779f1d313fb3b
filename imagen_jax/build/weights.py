"""The weights that a cascade's config names: moved, loaded and sharded."""

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax.build.nets import text
from imagen_jax.cascade import Cascade, used_shapes
from imagen_jax.interop import published
from imagen_jax.parallel.sharding import REPLICATED, RULES, Placement
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.settings import NoText, Text
from imagen_jax.training.setup import init_net
from imagen_jax.types import BATCH_AXES


def move_weights(config: Any, to: str) -> int:
  """Points a config's hf:// paths to a folder or another owner.

  Args:
    config: the config, changed in place.
    to: a folder that holds the repositories by name, or an owner on the Hub.

  Returns:
    The number of replaced paths.

  Raises:
    ValueError: as for download.moved.
  """
  from imagen_jax.interop import download

  count = 0
  for key, value in config.items():
    if hasattr(value, "items"):
      count += move_weights(value, to)
    elif str(value).startswith(download.SCHEME):
      config[key] = download.moved(value, to)
      count += 1
  return count


def replace_weights(
  config: Any, weights: Mapping[str, str] | str | None
) -> None:
  """Replaces a cascade config's paths of weights, in place.

  Args:
    config: the config.
    weights: paths by stage, and for "text"; or a folder or an owner that holds
      all hf:// paths of the config; or None for no change.

  Raises:
    ValueError: there is no such part, or no hf:// path to replace.
  """
  if isinstance(weights, str | os.PathLike):
    if not move_weights(config, os.fspath(weights)):
      raise ValueError(
        f"weights is {weights}, but the config has no hf:// paths"
      )
    return
  parts = (*(config.get("stages") or ()), "text")
  for name, path in (weights or {}).items():
    if name not in parts:
      raise ValueError(
        f"weights names {name!r}, expected one of {', '.join(parts)}"
      )
    config[name].weights = os.fspath(path)


def identity(config: Mapping[str, Any], name: str) -> str:
  """Returns a text that identifies the weights of a part of a cascade config.

  See interop.identity. The identity of "text" includes its vocabulary.

  Args:
    config: the config.
    name: a stage, or "text".
  """
  from imagen_jax.interop.identity import identity

  found = identity(config[name]["weights"])
  if name == "text":
    found += f", vocabulary {identity(config['text']['vocabulary'])}"
  return found


def net_placement(devices: Mesh, height: bool) -> Placement:
  """Returns the sharding of a net's weights for sampling.

  height: whether the tensor axis shards the height of images in place of them.
  """
  if not height:
    return Placement(devices)
  axes = lambda axes: axes if axes == REPLICATED else ()
  rules = tuple((pattern, axes(given)) for pattern, given in RULES)
  return Placement(devices, rules)


def text_placement(devices: Mesh) -> Placement:
  """Returns the sharding of a text encoder for sampling.

  Its weights lie on all devices that shard a batch, also where each device
  holds all of every net. It runs once for a batch, and nets at every step.
  """
  return Placement(devices, fsdp=BATCH_AXES)


def load_encoder(
  config: Mapping[str, Any], placement: Placement
) -> TextEncoder:
  """Loads and shards the weights of a cascade config's text encoder."""
  words = text(config["text"])
  return published.text_encoder(words, published.load_text(words, placement))


def check_files(
  config: Mapping[str, Any], built: Cascade, given: Iterable[str]
) -> None:
  """Checks the files of a cascade config before any is read into memory.

  Files on the Hub are fetched. A stage of the config may lack its weights,
  since it may not run. A stage that the caller named must have them.

  Args:
    config: the config.
    built: its cascade.
    given: the stages whose weights the caller named, and perhaps "text".

  Raises:
    ValueError: a file cannot be used.
  """
  for name in built.names:
    published.resolve(config[name]["weights"])
  for name in {*built.names} & {*given}:
    check_net(config, built, name)
  published.check_text(text(config["text"]))


def check_net(config: Mapping[str, Any], built: Cascade, name: str) -> None:
  """Checks the weights of a cascade config's stage, without reading them.

  Raises:
    ValueError: the weights are missing or belong to another net.
  """
  published.check_net(config[name]["weights"], _shapes(config, built, name))


def load_net(
  config: Mapping[str, Any], built: Cascade, name: str, placement: Placement
) -> Any:
  """Loads and shards the weights of a cascade config's stage.

  They are in the dtypes of sampling_shapes. Each tensor is cast as it is read.
  """
  like = _shapes(config, built, name)
  return published.load_net(config[name]["weights"], like, placement)


def _shapes(config: Mapping[str, Any], built: Cascade, name: str) -> Any:
  member = built.stages[built.names.index(name)]
  return sampling_shapes(member, text(config["text"]))


@functools.lru_cache(maxsize=8)  # tracing the paper's nets takes seconds
def sampling_shapes(stage: Stage, text: Text | NoText) -> Any:
  """Returns the shapes of a stage's weights and the dtypes to sample with."""
  return used_shapes(lambda: init_net(stage, text, jax.random.key(0)))
