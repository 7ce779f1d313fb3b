"""The weights that a cascade's config names: moved, loaded and placed."""

import os
from collections.abc import Iterable, Mapping
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
  config: Any, weights: Mapping[str, str] | str | None
) -> None:
  """Replaces a cascade config's paths of weights, in place.

  Args:
    config: the config.
    weights: paths by stage, and for "text"; or a folder or an owner, where all
      hf:// paths of the config lie instead; or None.

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


def check_files(
  config: Mapping[str, Any], built: Cascade, given: Iterable[str]
) -> None:
  """Checks the files of a cascade config before any is read into memory.

  The Hub's are fetched. The config's stages may be without weights, for perhaps
  they do not run; those that the caller gave may not.

  Args:
    config: the config.
    built: its cascade.
    given: the stages whose weights the caller named, and perhaps "text".

  Raises:
    ValueError: a file cannot be used.
  """
  for name in built.names:
    published.packaged(config[name]["weights"])
  for name in {*built.names} & {*given}:
    check_net(config, built, name)
  published.check_text(text(config["text"]))


def check_net(config: Mapping[str, Any], built: Cascade, name: str) -> None:
  """Checks the weights of one of a cascade config's stages; reads none.

  Raises:
    ValueError: there are none, or they are those of another net.
  """
  published.check_net(config[name]["weights"], _shapes(config, built, name))


def load_net(
  config: Mapping[str, Any], built: Cascade, name: str, placement: Placement
) -> Any:
  """Returns the weights of one of a cascade config's stages, placed."""
  like = _shapes(config, built, name)
  return published.load_net(config[name]["weights"], like, placement)


def _shapes(config: Mapping[str, Any], built: Cascade, name: str) -> Any:
  member = built.stages[built.names.index(name)]
  return net_shapes(member, text(config["text"]))
