"""Settings from a config's keys, with every mistake named.

A config is a mapping such as a ConfigDict. Each section describes an object:
its keys are the object's settings, which also have the defaults. Every mistake
is a ValueError with the key's full name.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn


def section(value: Any, where: str) -> Mapping[str, Any]:
  """Returns a (sub-)config; ValueError for any other value, such as None."""
  if not hasattr(value, "items"):
    raise ValueError(f"config {where} is {value!r}, expected keys with values")
  return value


def fits(value: Any, hint: Any) -> bool:
  """Returns True if a setting has the type of its annotation."""
  if isinstance(hint, types.UnionType):
    return any(fits(value, option) for option in hint.__args__)
  if typing.get_origin(hint) is tuple:
    inner = hint.__args__[0]
    return isinstance(value, tuple) and all(fits(v, inner) for v in value)
  if isinstance(value, bool) or hint is Any:
    return hint in (bool, Any)
  if hint is float:
    return isinstance(value, int | float) and not math.isnan(value)
  return not isinstance(hint, type) or isinstance(value, hint)


def fill(
  build: Callable[..., Any],
  config: Mapping[str, Any],
  where: str,
  hints: Mapping[str, Any],
  **resolved: Any,
) -> Any:
  """Calls build with a config's values, some replaced by resolved ones.

  Args:
    build: a class or function.
    config: its settings.
    where: the config's name in error messages.
    hints: the keys that build takes, with the types of their values.
    **resolved: values that replace config's values.

  Raises:
    ValueError: a key is unknown, a value has another type, or build raises.
  """
  plain = {}
  for key, value in section(config, where).items():
    if key not in hints:
      known = ", ".join(hints) or "none"
      raise ValueError(f"unknown config key {where}.{key}, expected {known}")
    if key in resolved:
      continue
    plain[key] = as_tuple(value)
    hint = hints[key]
    if not fits(plain[key], hint):
      wanted = hint.__name__ if isinstance(hint, type) else hint
      raise ValueError(f"config {where}.{key} is {value!r}, expected {wanted}")
  try:
    return build(**plain, **resolved)
  except (TypeError, ValueError) as error:
    raise ValueError(f"config {where}: {error}") from error


def as_tuple(value: Any) -> Any:
  """Turns lists into tuples, which are hashable."""
  if isinstance(value, list | tuple):
    return tuple(as_tuple(v) for v in value)
  return value


def fields(cls: type) -> dict[str, Any]:
  """Returns the settings of a dataclass or linen module with their types."""
  # Linen's own fields, and the one that config.text.int8 sets.
  hidden = {"parent", "name", "dense"} if issubclass(cls, nn.Module) else {}
  return {
    f.name: f.type for f in dataclasses.fields(cls) if f.name not in hidden
  }


def kind(
  config: Mapping[str, Any], where: str, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
  """Returns the option that `kind` names, and the rest of the sub-config."""
  rest = dict(section(config, where).items())
  return pick(rest.pop("kind", None), f"config {where}.kind", options), rest


def settings(
  config: Mapping[str, Any], where: str, options: Mapping[str, Any]
) -> Any:
  """Builds the object that a sub-config names by `kind` and describes.

  Keys that only other kinds have are ignored, so that a command line can change
  `kind` alone.
  """
  chosen, rest = kind(config, where, options)
  hints = {
    option: fields(option) if isinstance(option, type) else {}
    for option in options.values()
  }
  others = {key for known in hints.values() for key in known}
  others -= hints[chosen].keys()
  own = {key: value for key, value in rest.items() if key not in others}
  return fill(chosen, own, where, hints[chosen])


def check_names(
  config: Mapping[str, Any],
  where: str,
  names: Sequence[str],
  optional: Sequence[str] = (),
) -> None:
  """Raises ValueError for a key of config that is unknown or missing."""
  found = {*section(config, where.rstrip("."))} - {*optional}
  for key in sorted(found ^ {*names}):
    what = "is missing" if key in names else "is unknown"
    raise ValueError(
      f"config key {where}{key} {what}, expected {', '.join(names)}"
    )


def pick(name: str, what: str, options: Mapping[str, Any]) -> Any:
  """Returns options[name]; ValueError with the known names if there is none."""
  if name not in options:
    known = ", ".join(map(repr, options))
    raise ValueError(f"{what} is {name!r}, expected one of {known}")
  return options[name]
