"""The weights that a cascade's config names: moved, loaded and placed."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.build.nets import text
from imagen_jax.cascade import Cascade
from imagen_jax.interop import published
from imagen_jax.parallel.sharding import Placement
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training.setup import net_shapes


def move_weights(config: Any, to: str) -> int:
  """Has a config's hf:// paths lie in a folder, or with an owner; how many.

  The folder holds their repositories by name. ValueError as download.moved.
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
  config: Any, parts: Sequence[str], weights: Mapping[str, str] | str | None
) -> None:
  """Replaces a cascade config's paths of weights, in place.

  Args:
    config: the config.
    parts: the names of the stages, and "text".
    weights: paths by part; or a folder or an owner, where all hf:// paths of
      the config lie instead; or None.

  Raises:
    ValueError: there is no such part, or no hf:// path to replace.
  """
  if isinstance(weights, str | os.PathLike):
    if not move_weights(config, os.fspath(weights)):
      raise ValueError(
        f"weights is {weights}, but the config has no hf:// paths"
      )
    return
  for name, path in (weights or {}).items():
    if name not in parts:
      raise ValueError(
        f"weights names {name!r}, expected one of {', '.join(parts)}"
      )
    config[name].weights = os.fspath(path)


def identity(config: Mapping[str, Any], name: str) -> str:
  """Returns what weights a cascade config names, for a stage or for "text".

  See interop.identity; that of the text is of its vocabulary too.
  """
  from imagen_jax.interop.identity import identity

  found = identity(config[name]["weights"])
  if name == "text":
    found += f", vocabulary {identity(config['text']['vocabulary'])}"
  return found


def load_encoder(
  config: Mapping[str, Any], placement: Placement
) -> TextEncoder:
  """A cascade config's text encoder with its weights, placed."""
  words = text(config["text"])
  return published.text_encoder(words, published.load_text(words, placement))


def load_net(
  config: Mapping[str, Any], built: Cascade, name: str, placement: Placement
) -> Any:
  """Returns the weights of one of a cascade config's stages, placed."""
  member = built.stages[built.names.index(name)]
  like = net_shapes(member, text(config["text"]))
  return published.load_net(config[name]["weights"], like, placement)
