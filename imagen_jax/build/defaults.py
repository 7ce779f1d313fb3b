"""A stage's config with every default written out, as checkpoints keep it.

The config of an old checkpoint lacks the keys of newer settings. It is filled
with today's defaults before it is compared. Each default computes the same as
the old code.
"""

import dataclasses
import json
import types
from collections.abc import Mapping
from typing import Any

from imagen_jax.build.diffusion import (
  SAMPLING_KINDS,
  STAGE_KINDS,
  STAGE_NAMES,
)
from imagen_jax.build.keys import fields
from imagen_jax.build.nets import ENCODER, ENCODERS, NET_NAMES, NETS
from imagen_jax.build.runs import OPTIMIZERS
from imagen_jax.nets.efficient_unet import BlockSpec
from imagen_jax.parallel.mesh import MeshShape
from imagen_jax.stage import Sampling, Stage
from imagen_jax.text.settings import Text
from imagen_jax.training.settings import Data, Part, Training

Options = Mapping[str, Mapping[str, Any]]
NONE: Options = types.MappingProxyType({})
# The class of each section, its keys that are names, and its keys with a kind.
SECTIONS: dict[str, tuple[type, Options, Options]] = {
  "stage": (Stage, STAGE_NAMES, STAGE_KINDS),
  "text": (Text, {}, {}),
  "sampling": (Sampling, {}, SAMPLING_KINDS),
  "data": (Data, {}, {}),
  "train": (Training, {}, {}),
  "mesh": (MeshShape, {}, {}),
}


def as_json(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a stage's config as JSON values, every default filled in.

  Args:
    config: a ConfigDict, or an earlier result of this function, perhaps from an
      older version. Unknown keys are kept, and missing sections stay missing.
  """
  if hasattr(config, "to_json_best_effort"):
    config = json.loads(config.to_json_best_effort())
  filled = dict(config)
  for key, (cls, names, kinds) in SECTIONS.items():
    if key in config:
      filled[key] = _section(config[key], cls, names, kinds)
  if "optimizer" in config:
    filled["optimizer"] = _kind(config["optimizer"], OPTIMIZERS)
  if "net" in filled.get("stage", {}):
    filled["stage"]["net"] = _kind(filled["stage"]["net"], NETS, NET_NAMES)
  if isinstance(text := filled.get("text"), Mapping):
    text = filled["text"] = {"kind": ENCODER} | text
    if "encoder" in text:
      cls = ENCODERS.get(text["kind"], ENCODERS[ENCODER])
      text["encoder"] = _section(text["encoder"], cls, NET_NAMES)
  return json.loads(json.dumps(filled))  # tuples as lists


def _section(
  given: Any, cls: type, names: Options = NONE, kinds: Options = NONE
) -> Any:
  """Returns a section with the defaults of cls, whose fields are its keys."""
  if not isinstance(given, Mapping):
    return given
  filled = dict(given)
  for key, default in _defaults(cls).items():
    if key not in given:
      filled[key] = _described(default, names.get(key), kinds.get(key))
  for key in names.keys() & filled.keys():
    filled[key] = _one_name(filled[key], names[key])
  for key in kinds.keys() & filled.keys():
    filled[key] = _kind(filled[key], kinds[key])
  for key, of in (("blocks", BlockSpec), ("mixture", Part)):
    if isinstance(filled.get(key), list):
      filled[key] = [_section(each, of) for each in filled[key]]
  return filled


def _kind(given: Any, options: Mapping[str, Any], names: Options = NONE) -> Any:
  """Returns a section with the defaults of the class that its kind names."""
  cls = isinstance(given, Mapping) and options.get(given.get("kind"))
  return _section(given, cls, names) if isinstance(cls, type) else given


def _defaults(cls: type) -> dict[str, Any]:
  """Returns the default of every key of cls that has one."""
  return {
    field.name: field.default
    for field in dataclasses.fields(cls)
    if field.name in fields(cls) and field.default is not dataclasses.MISSING
  }


def _described(
  value: Any,
  names: Mapping[str, Any] | None,
  kinds: Mapping[str, Any] | None,
) -> Any:
  """Returns a default as a JSON config holds it: the inverse of build."""
  if names and value is not None:
    return next(name for name, option in names.items() if option == value)
  if kinds:
    for name, option in kinds.items():
      if type(value) is option:
        return {"kind": name} | dataclasses.asdict(value)
      if not isinstance(option, type) and option() == value:
        return {"kind": name}
  if isinstance(value, tuple):
    return [_described(part, None, None) for part in value]
  if isinstance(value, BlockSpec):
    return dataclasses.asdict(value)
  assert value is None or isinstance(value, bool | int | float | str), value
  return value


def _one_name(name: Any, names: Mapping[str, Any]) -> Any:
  """Returns the first of several names for one option, such as silu, swish."""
  if not isinstance(name, str) or name not in names:
    return name
  same = names[name]
  return next(other for other, option in names.items() if option == same)
