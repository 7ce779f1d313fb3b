"""The net and the text encoder that a config describes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from imagen_jax.build.keys import as_tuple, fields, fill, kind, pick, section
from imagen_jax.interop import diffusers, hub, published
from imagen_jax.nets import layers
from imagen_jax.nets.bert import BertEncoder
from imagen_jax.nets.clip_text import ClipTextEncoder
from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.t5 import T5Encoder, int8_dense
from imagen_jax.nets.unet import UNet
from imagen_jax.text.settings import NoText, StoredText, Text

NETS = {
  "UNet": UNet,
  "EfficientUNet": EfficientUNet,
  "diffusers": published.UNetFolder,
}
ENCODERS = {"t5": T5Encoder, "bert": BertEncoder, "clip": ClipTextEncoder}
ENCODER = "t5"  # the kind of a config.text without one
# Keys of nets whose values are names, and the values that these name.
NET_NAMES = {
  "dtype": {"float32": jnp.float32, "bfloat16": jnp.bfloat16},
  "activation": diffusers.ACTIVATIONS,
  "precision": dict(zip(layers.PRECISIONS, layers.PRECISIONS, strict=True)),
  "text_norm": {"layer": layers.layer_norm, "group": layers.text_group_norm},
}

_NOT_EMPTY = ("blocks", "channel_mult", "kernel_size", "strides")
_COUNTS = ("num_encoder_layers", "num_res_blocks")  # of layers


def net(config: Mapping[str, Any], where: str = "stage.net") -> nn.Module:
  """Returns the net that config.stage.net describes."""
  cls, rest = kind(config, where, NETS)
  if cls is published.UNetFolder:
    return module(rest, where, cls, lambda **given: cls(**given).unet())
  return module(rest, where, cls)


def text(config: Mapping[str, Any] | None) -> Text | NoText:
  """Returns the settings of config.text; None is for unconditional nets."""
  if config is None:
    return NoText()
  given = {"kind": ENCODER} | dict(section(config, "text").items())
  cls, rest = kind(given, "text", ENCODERS)
  sizes = _with_sizes(rest.get("encoder", {}), rest, cls)
  encoder = module(sizes, "text.encoder", cls)
  if rest.get("int8") is True:
    if cls is not T5Encoder:
      raise ValueError(
        f"config text.int8 is True, expected False: {given['kind']} has no int8"
      )
    encoder = encoder.clone(dense=int8_dense)
  return fill(Text, rest, "text", fields(Text), encoder=encoder)


def stored_text(
  text: Text | NoText, config: Mapping[str, Any], folder: str | None
) -> Text | StoredText | NoText:
  """Returns the text encoder, or what replaces it with data.embeddings.

  Args:
    text: the encoder.
    config: the stage's config.
    folder: data.embeddings.

  Raises:
    ValueError: there is no encoder, or the net sees more of its outputs than is
      stored.
  """
  if folder is None:
    return text
  if isinstance(text, NoText):
    raise ValueError("config data.embeddings is set, but text is None")
  norm = config["stage"]["net"].get("text_norm")
  if norm == "group" and not text.attend_padding:
    raise ValueError(
      "config data.embeddings is set, but text_norm='group' of the net reads"
      " padding, which is not stored: expected text.attend_padding=True"
    )
  return StoredText(text, folder)


def required_text(config: Mapping[str, Any]) -> Text:
  """Returns the text encoder's settings, for callers that need an encoder.

  Raises:
    ValueError: the config has no text encoder, or describes it wrongly.
  """
  if config.get("text") is None:
    raise ValueError("config text is None, expected a text encoder")
  return text(config["text"])


def _with_sizes(given: Any, config: Mapping[str, Any], cls: type) -> Any:
  """Fills config.text.encoder's missing sizes from the weights' config.json.

  Raises:
    ValueError: a size is in neither of them.
  """
  hidden = fields(cls)
  needed = [
    field.name
    for field in dataclasses.fields(cls)
    if field.name in hidden and field.default is dataclasses.MISSING
  ]
  given = dict(section(given, "text.encoder").items())
  if not {*needed} - {*given}:
    return given
  weights = config.get("weights")
  found = {}
  if isinstance(weights, str):
    found = published.encoder_sizes(weights, cls)
  if lacking := [key for key in needed if key not in found | given]:
    raise ValueError(
      f"config text.encoder has no {', '.join(lacking)}, expected them there, "
      f"or the encoder's {hub.CONFIG} beside weights {weights}"
    )
  return found | given


def module(
  config: Mapping[str, Any],
  where: str,
  cls: type,
  make: Callable[..., nn.Module] | None = None,
) -> nn.Module:
  """Returns a linen module from a sub-config whose keys are cls's fields.

  Args:
    config: the sub-config.
    where: its name in error messages.
    cls: the class whose fields are the keys.
    make: makes the module from the fields; None for cls itself.
  """
  resolved = {}
  for key in NET_NAMES.keys() & section(config, where).keys():
    what = f"config {where}.{key}"
    resolved[key] = pick(config[key], what, NET_NAMES[key])
  blocks = as_tuple(config.get("blocks"))
  if isinstance(blocks, tuple):
    resolved["blocks"] = tuple(
      fill(BlockSpec, block, f"{where}.blocks[{i}]", fields(BlockSpec))
      for i, block in enumerate(blocks)
    )
  check_sizes(config, where)
  return fill(make or cls, config, where, fields(cls), **resolved)


def check_sizes(config: Mapping[str, Any], where: str) -> None:
  """Raises ValueError for a number in a net's config that is no valid size.

  All integers in a net's config are sizes and counts, also those in tuples.
  """
  for key, value in config.items():
    if hasattr(value, "items"):
      check_sizes(value, f"{where}.{key}")
      continue
    values = as_tuple(value)
    if values == () and key in _NOT_EMPTY:
      raise ValueError(f"config {where}.{key} is empty, expected numbers")
    for number in values if isinstance(values, tuple) else (values,):
      if hasattr(number, "items"):
        check_sizes(number, f"{where}.{key}")
      elif type(number) is int and not 1 <= number <= _most(key):
        raise ValueError(
          f"config {where}.{key} is {value!r}, expected 1 to {_most(key):,}"
        )


def _most(key: str) -> int:
  """Returns the largest number that a key of a net may have."""
  # Layers are made one by one, so that billions would never be finished.
  return 1_000 if key in _COUNTS else 10_000_000
