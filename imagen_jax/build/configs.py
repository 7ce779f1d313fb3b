"""Configs by name: finds, reads and overrides them.

The configs of the package are those in the repository's configs/, which the
wheel ships as imagen_jax.configs.
"""

import contextlib
import copy
import importlib.machinery
import importlib.util
import inspect
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from imagen_jax.files import expand

PACKAGE = pathlib.Path(__file__).parents[1]
EXAMPLE = "configs/shapes.py"
MODULE = "imagen_jax_config"  # the name of a config's module
# A base64.py would shadow the standard library's for programs in configs/.
RENAMED = {"base64": "base_64"}


class BadArgument(ValueError):
  """Explains why a config's get_config() does not accept its argument."""


def config_names() -> list[str]:
  """Returns the names of the shipped configs, such as "shapes"."""
  folder = PACKAGE / "configs"
  paths = [path.relative_to(folder) for path in folder.glob("**/*.py")]
  names = [path.with_suffix("").as_posix() for path in paths]
  return sorted(name for name in names if not name.endswith("__init__"))


def find_config(name: str) -> tuple[pathlib.Path, str | None]:
  """Returns a config's file and its argument, the part after a colon.

  Args:
    name: a file, or a shipped config as "shapes" or as "configs/shapes.py";
      then a colon and the argument, if there is one. A file takes precedence.

  Raises:
    ValueError: there is no such file and no such shipped config.
  """
  given, colon, argument = name.partition(":")
  path = pathlib.Path(expand(given))
  shipped = path
  if path.suffix != ".py":
    shipped = pathlib.Path("configs", f"{given}.py")
  places = [path, _renamed(path)]
  if shipped.parts[:1] == ("configs",):
    places.append(PACKAGE / _renamed(shipped))
  for place in places:
    if place.is_file():
      return place, argument if colon else None
  if path.suffix == ".py" or "/" in given:
    raise ValueError(
      f"config {name!r} cannot be read, expected a file such as {EXAMPLE}"
    )
  raise ValueError(
    f"config {name!r} is unknown, expected a file or one of "
    f"{', '.join(config_names())}"
  )


def _renamed(path: pathlib.Path) -> pathlib.Path:
  """Returns the path with the file's new name, if it has one."""
  new = RENAMED.get(path.stem)
  return path.with_stem(new) if new else path


def load_module(name: str) -> types.ModuleType:
  """Runs a config's file and returns its module.

  Raises:
    ValueError: the file is not found, cannot be read or is not Python.
    RuntimeError: the config's code raised a ValueError, which is the cause. Any
      other exception of the code is left as it is.
  """
  path, _ = find_config(name)
  loader = importlib.machinery.SourceFileLoader(MODULE, str(path))
  try:
    code = loader.source_to_code(path.read_bytes(), path)
  except OSError as error:
    raise ValueError(
      f"config {name!r} cannot be read: {error.strerror}, expected a file such "
      f"as {EXAMPLE}"
    ) from error
  except SyntaxError as error:
    where = f", line {error.lineno}" if error.lineno else ""
    said = f"config {name!r} is not Python{where}: {error.msg}"
    raise ValueError(said) from error
  except ValueError as error:  # for null bytes, before Python 3.12
    raise ValueError(f"config {name!r} is not Python: {error}") from error
  spec = importlib.util.spec_from_loader(MODULE, loader)
  module = importlib.util.module_from_spec(spec)
  sys.modules[MODULE] = module  # where dataclasses look up annotations
  with _its_own_errors(name):
    exec(code, module.__dict__)
  return module


def read_config(name: str) -> ConfigDict:
  """Returns the config of a name, which is one that find_config takes.

  Raises:
    ValueError: there is no such config, its file is not Python or has no
      get_config(), or get_config() returns no ConfigDict.
    BadArgument: get_config() does not accept the argument.
    RuntimeError: as for load_module.
  """
  _, argument = find_config(name)
  make = getattr(load_module(name), "get_config", None)
  if not callable(make):
    raise ValueError(f"config {name!r} has no get_config(), expected one")
  config = _call(name, make, [] if argument is None else [argument])
  if isinstance(config, dict):
    config = ConfigDict(config)
  if not isinstance(config, ConfigDict):
    raise ValueError(f"get_config() returned {config!r}, expected a ConfigDict")
  return config


def _call(name: str, make: Callable[..., Any], arguments: list[str]) -> Any:
  """Calls get_config(); raises what read_config documents."""
  try:
    inspect.signature(make).bind(*arguments)
  except TypeError as error:
    wanted = "no argument" if arguments else f"an argument, as {name}:ARGUMENT"
    said = f"config {name!r} is unknown, expected {wanted}"
    raise BadArgument(said) from error
  with _its_own_errors(name):
    return make(*arguments)


@contextlib.contextmanager
def _its_own_errors(name: str) -> Iterator[None]:
  """Separates ValueErrors of a config's code from mistakes of the user.

  A ValueError that get_config() itself raises is a mistake in its argument.
  """
  try:
    yield
  except ValueError as error:
    *_, frame = traceback.extract_tb(error.__traceback__)
    if frame.name == "get_config":
      raise BadArgument(str(error)) from error
    raise RuntimeError(f"config {name!r} failed: {error}") from error


def override(config: ConfigDict, changes: Mapping[str, Any]) -> None:
  """Sets values of a config by their dotted keys, in place.

  A key that the config leaves at its default may be new, but the section that
  holds it may not.

  Args:
    config: the config. It is changed in place so that values that refer to each
      other still do.
    changes: new values by key, such as {"sampling.steps": 32}.

  Raises:
    ValueError: the config has no place for a key, or its value has another
      type.
  """
  with config.unlocked():
    for key, value in changes.items():
      try:
        config_path.set_value(key, config, value, accept_new_attributes=True)
      except TypeError as error:
        kind = type(config_path.get_value(key, config)).__name__
        said = f"config {key} is {value!r}, expected {kind}"
        raise ValueError(said) from error
      except (AttributeError, LookupError, ValueError) as error:
        raise ValueError(f"the config has no key {key!r}") from error


def resolve(config: Any, changes: Mapping[str, Any] | None) -> ConfigDict:
  """Returns a copy of a config with changes.

  Args:
    config: a ConfigDict, or a name that read_config takes.
    changes: as override takes them; None for no changes.

  Raises:
    ValueError: as for read_config and override.
  """
  if isinstance(config, str | os.PathLike):
    config = read_config(os.fspath(config))
  config = copy.deepcopy(config)  # keeps references between its values
  override(config, changes or {})
  return config
