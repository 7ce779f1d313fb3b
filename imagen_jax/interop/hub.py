"""Hugging Face's format of weights: one safetensors file, or shards.

No pickle is ever opened, as loading one runs its author's code.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from imagen_jax import files
from imagen_jax.interop.tensors import Tensor, few, shown
from imagen_jax.interop.weights import (
  PICKLES,
  check_no_pickle,
  open_file,
  read_metadata,
  save_weights,
)

CONFIG = "config.json"  # describes the net of the weights beside it
STEM = "model"  # transformers' name of a model's files, without the ending
# A plain file name: no pattern, no path to another folder, not hidden.
_PLAIN = re.compile(r"[^./\\*?\[\]][^/\\*?\[\]]*")
_SHARD = re.compile(_PLAIN.pattern + r"\.safetensors")
# A single file, an index of shards, and both in half precision.
_ENDINGS = (
  ".safetensors",
  ".safetensors.index.json",
  ".fp16.safetensors",
  ".safetensors.index.fp16.json",
)


def tensors(path: epath.Path, stem: str = STEM) -> dict[str, Tensor]:
  """Opens the tensors of a file, of an index's shards or of a folder of either.

  In a folder the files are stem.safetensors and stem.safetensors.index.json, or
  their variants in half precision.

  Raises:
    ValueError: a file, which the sentence names, is missing, damaged or of
      another format.
  """
  path = find(path, stem)
  return _sharded(path) if path.suffix == ".json" else open_file(path)


def metadata(path: epath.Path, stem: str = STEM) -> dict[str, str]:
  """Reads the metadata of the file, or first shard, that tensors would open."""
  path = find(path, stem)
  if path.suffix == ".json":
    path = path.parent / min(weight_map(path).values())
  return read_metadata(path)


def find(path: epath.Path, stem: str = STEM) -> epath.Path:
  """Returns the safetensors file or the index of shards at a path.

  Raises:
    ValueError: there is none.
  """
  if str(path).startswith("gs://"):
    raise ValueError(
      f"weights {path} cannot be read in parts, expected a copy of them on a "
      "local disk"
    )
  if path.is_dir():
    path = _within(path, stem)
  check_no_pickle(path)
  return path


def save(
  folder: str | os.PathLike,
  state: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  stem: str = STEM,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes stem.safetensors, in the arrays' own dtypes, and config.json.

  Args:
    folder: the folder, which is created if it is missing.
    state: the tensors by their names in diffusers or transformers.
    config: the content of config.json.
    stem: the file's name without its ending.
    metadata: the metadata of the file.

  Raises:
    ValueError: a file cannot be written.
  """
  folder = epath.Path(folder)
  # dtype=None keeps every number; transformers requires the format "pt".
  save_weights(
    folder / f"{stem}.safetensors",
    state,
    dtype=None,
    metadata={"format": "pt"} | dict(metadata or {}),
  )
  files.write(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _within(folder: epath.Path, stem: str) -> epath.Path:
  """Finds the weights file, or the index of shards, in a folder."""
  for ending in _ENDINGS:
    if (folder / (stem + ending)).exists():
      return folder / (stem + ending)
  names = sorted(shown(item.name) for item in folder.iterdir())
  pickles = [name for name in names if epath.Path(name).suffix in PICKLES]
  file, index = (stem + ending for ending in _ENDINGS[:2])
  if pickles:
    raise ValueError(
      f"weights {folder} are pickles ({few(pickles)}), which can run anything, "
      f"expected {file} or {index}"
    )
  other = " or a t5x checkpoint" if stem == STEM else ""
  raise ValueError(
    f"weights {folder} are not there, expected {file}, {index}{other}; the "
    f"folder has {few(names) or 'nothing'}"
  )


def _sharded(path: epath.Path) -> dict[str, Tensor]:
  """Opens the tensors that an index names, and no others."""
  places = weight_map(path)
  shards = {}
  for shard in sorted(set(places.values())):
    if not (path.parent / shard).exists():
      raise ValueError(
        f"weights {path.parent} lack the file {shown(shard)}, which "
        f"{path.name} names"
      )
    shards[shard] = open_file(path.parent / shard)
  strays = [name for name, shard in places.items() if name not in shards[shard]]
  if strays:
    raise ValueError(
      f"weights {path.parent / places[strays[0]]} lack "
      f"{few([shown(name) for name in strays])}, which {path.name} places there"
    )
  return {name: shards[shard][name] for name, shard in places.items()}


def weight_map(path: epath.Path) -> dict[str, str]:
  """Reads the index of sharded weights, which may come from anyone.

  Returns:
    {tensor: file}, with the names of safetensors files beside the index.

  Raises:
    ValueError: the file cannot be read, is no index, or names pickles, patterns
      or files in another folder.
  """
  index = files.read_json(path, "index of weights")
  places = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(places, dict):
    raise ValueError(
      f"index of weights {path} has no weight_map, expected one from tensors "
      "to the safetensors files beside it"
    )
  for place in dict.fromkeys(map(str, places.values())):
    if _PLAIN.fullmatch(place) and place.isprintable():
      check_no_pickle(path.parent / place)
    if not _SHARD.fullmatch(place) or not place.isprintable():
      raise ValueError(
        f"index of weights {path} names the file {files.quote(place)}, "
        "expected the names of safetensors files beside it"
      )
  return places
