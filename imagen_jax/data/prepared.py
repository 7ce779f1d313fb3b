"""Checks of a dataset's folder before TFDS opens or prepares it.

TFDS imports the modules that features.json or dataset_info.json names for its
features. The folder may come from anyone, so the names are checked first.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from imagen_jax import files

try:
  import fcntl
except ImportError:  # on Windows
  fcntl = None

# TFDS's own features. Importing their modules runs no code of the folder.
_CLASS = re.compile(r"tensorflow_datasets\.core\.features(\.[A-Za-z_]\w*)+")
_CLASS_KEYS = ("pythonClassName", "python_class_name")
_OLD_KEYS = (*_CLASS_KEYS, "type")  # within features


def check_folder(folder: epath.Path) -> None:
  """Checks every version of a dataset in a folder, without running its code.

  Args:
    folder: DATA_DIR/NAME. It may be missing.

  Raises:
    ValueError: a file is not valid JSON, or names code outside TFDS.
  """
  if not folder.is_dir():
    return
  metadata = folder / ".config" / "metadata.json"
  if metadata.exists():
    _check_default_config(metadata)
  # NAME/VERSION or NAME/CONFIG/VERSION.
  for path in (*folder.glob("*/*.json"), *folder.glob("*/*/*.json")):
    _check_file(path)


def check_version(folder: epath.Path) -> None:
  """Checks the folder of one version, as check_folder does.

  Args:
    folder: has features.json and dataset_info.json.

  Raises:
    ValueError: a file is not valid JSON, or names code outside TFDS.
  """
  for path in folder.glob("*.json"):
    _check_file(path)


def _check_file(path: epath.Path) -> None:
  """Checks a JSON file of a dataset, if TFDS would read it."""
  if path.name == "features.json":
    features = files.read_json(path, "dataset features")
    _check_classes(features, _OLD_KEYS, path)
  elif path.name == "dataset_info.json":
    info = files.read_json(path, "dataset info")
    if not isinstance(info, dict):
      raise ValueError(f"dataset info {path} holds no object")
    # It may hold features too. Outside them, "type" names no class.
    _check_classes(info.get("features"), _OLD_KEYS, path)
    _check_classes(info, _CLASS_KEYS, path)


def check_inside(path: str | os.PathLike, folder: str | os.PathLike) -> None:
  """Checks that a file of records lies in its dataset's folder.

  The file's name comes from dataset_info.json.

  Raises:
    ValueError: the file is elsewhere.
  """
  path, folder = os.fspath(path), os.path.normpath(os.fspath(folder))
  if not os.path.normpath(path).startswith(folder + os.sep):
    raise ValueError(
      f"dataset_info.json in {folder} names the file {files.quote(path, 200)},"
      " expected one in its own folder"
    )


@contextlib.contextmanager
def alone(prepared: str | os.PathLike) -> Iterator[None]:
  """Runs the block, which prepares a folder, while no other process does so.

  Files that a killed preparation left beside the folder are removed first.
  Where files cannot be locked, as on gs://, the block runs at once and removes
  no files.
  """
  version, folder = epath.Path(prepared).name, epath.Path(prepared).parent
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    if fcntl is None or files.is_remote(folder):
      yield
      return
    lock = os.open(folder, os.O_RDONLY)
    stack.callback(os.close, lock)
    try:
      fcntl.flock(lock, fcntl.LOCK_EX)  # released if the process is killed
    except OSError:  # the file system has no locks
      yield
      return
    for left in folder.glob(f"incomplete.*_{version}"):
      logging.info("removing %s, left by a preparation that ended", left)
      left.rmtree(missing_ok=True)
    yield


def _check_default_config(path: epath.Path) -> None:
  """Checks the name of the config that TFDS opens by default."""
  value = files.read_json(path, "dataset metadata")
  name = value.get("default_config_name") if isinstance(value, dict) else value
  if name is not None and not re.fullmatch(r"\w[\w.+-]*", str(name)):
    raise ValueError(
      f"dataset metadata {path} has the default_config_name"
      f" {files.quote(name)}, expected the name of a folder"
    )


def _check_classes(value: Any, keys: Sequence[str], path: epath.Path) -> None:
  """Checks that a file's JSON names only TFDS features under these keys."""
  left = [value]
  while left:
    value = left.pop()
    if isinstance(value, dict):
      for key, child in value.items():
        if key in keys and isinstance(child, str):
          _check_class(child, path)
        left.append(child)
    elif isinstance(value, list):
      left += value
    elif isinstance(value, str) and value.lstrip().startswith(("{", "[", '"')):
      # TFDS parses some strings as JSON again.
      left += _nested(value, path)


def _check_class(name: str, path: epath.Path) -> None:
  """Raises ValueError unless a class is one of TFDS's own features."""
  if not _CLASS.fullmatch(name):
    raise ValueError(
      f"dataset file {path} names the class {files.quote(name)}, which would"
      " run code: expected features of tensorflow_datasets.core.features"
    )


def _nested(text: str, path: epath.Path) -> list[Any]:
  """Returns the JSON value in a string as a list; empty if it is not JSON."""
  try:
    value = files.parse_json(text, f"dataset file {path}")
  except ValueError:
    return []
  return [] if isinstance(value, str) and value == text else [value]
