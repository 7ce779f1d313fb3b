"""Weights as Hugging Face stores them: a safetensors file, or shards of one.

No pickle is ever opened: loading one runs what its author wrote.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath

from imagen_jax import files
from imagen_jax.interop.tensors import Tensor, few
from imagen_jax.interop.weights import (
  PICKLES,
  check_no_pickle,
  reading,
  save_weights,
)

CONFIG = "config.json"  # what the weights beside it are of
STEM = "model"  # transformers' name of a model's files, without the ending
# A single file, an index of shards, either in half precision.
_ENDINGS = (
  ".safetensors",
  ".safetensors.index.json",
  ".fp16.safetensors",
  ".safetensors.index.fp16.json",
)
# Others keep their own names, which are not those of floats.
_DTYPES = {
  "F64": jnp.dtype("float64"),
  "F32": jnp.dtype("float32"),
  "F16": jnp.dtype("float16"),
  "BF16": jnp.dtype("bfloat16"),
}


def tensors(path: epath.Path, stem: str = STEM) -> dict[str, Tensor]:
  """The tensors of a file, of an index's shards or of a folder with either.

  In a folder these are called stem.safetensors and stem.safetensors.index.json.

  ValueError, naming the file, if one is missing, damaged or of another kind.
  """
  if str(path).startswith("gs://"):
    raise ValueError(
      f"weights {path} cannot be read in parts, expected a copy of them on a "
      "local disk"
    )
  if path.is_dir():
    path = _within(path, stem)
  check_no_pickle(path)
  return _sharded(path) if path.suffix == ".json" else _file(path)


def save(
  folder: str | os.PathLike,
  state: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  stem: str = STEM,
) -> None:
  """Writes stem.safetensors, numbers as they are, and config.json.

  ValueError if they cannot be written.
  """
  folder = epath.Path(folder)
  # None keeps every number; "pt" is what transformers asks for.
  save_weights(
    folder / f"{stem}.safetensors",
    state,
    dtype=None,
    metadata={"format": "pt"},
  )
  files.write(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _within(folder: epath.Path, stem: str) -> epath.Path:
  """The file of a folder's weights, or the index of its files."""
  for ending in _ENDINGS:
    if (folder / (stem + ending)).exists():
      return folder / (stem + ending)
  names = sorted(item.name for item in folder.iterdir())
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


def _file(path: epath.Path) -> dict[str, Tensor]:
  with reading(path):
    file = safetensors.safe_open(path, "numpy")
    names = file.keys()
    return {name: _tensor(file, name) for name in names}


def _tensor(file: Any, name: str) -> Tensor:
  # Of the file only what is read comes into memory, and may leave it again.
  part = file.get_slice(name)
  dtype = part.get_dtype()
  read = lambda index: part[index]
  return Tensor(tuple(part.get_shape()), _DTYPES.get(dtype, dtype), read)


def _sharded(path: epath.Path) -> dict[str, Tensor]:
  """The tensors of an index; what it does not name is not there."""
  places = weight_map(path)
  shards = {}
  for shard in sorted(set(places.values())):
    if not (path.parent / shard).exists():
      raise ValueError(
        f"weights {path.parent} lack the file {shard}, which {path.name} names"
      )
    shards[shard] = _file(path.parent / shard)
  strays = [name for name, shard in places.items() if name not in shards[shard]]
  if strays:
    raise ValueError(
      f"weights {path.parent / places[strays[0]]} lack {few(strays)}, which "
      f"{path.name} places there"
    )
  return {name: shards[shard][name] for name, shard in places.items()}


def weight_map(path: epath.Path) -> dict[str, str]:
  """{tensor: file} of an index; ValueError if it is none, or one of pickles."""
  places = {}
  try:
    places = json.loads(path.read_text())["weight_map"]
    shards = [epath.Path(shard) for shard in places.values()]
    sound = all(shard.name == str(shard) for shard in shards)
  except OSError as error:
    raise ValueError(
      f"weights {path} cannot be read: {files.reason(error)}"
    ) from error
  except (ValueError, TypeError, KeyError, AttributeError):
    sound = False
  if not sound:
    raise ValueError(
      f"weights {path} are no index, expected JSON with a weight_map from "
      "tensors to files beside it"
    )
  for shard in shards:
    check_no_pickle(path.parent / shard)
  return places
