"""Checkpoints of t5x: a msgpack file `checkpoint`, and zarr arrays beside it.

  {"version": 3, "optimizer": {"target": {...}, "state": {...}}}

Of the target's leaves the small ones are arrays. A large one is what
TensorStore has to know to open it, with a path as on the machine that wrote
it; its last part is a folder beside the file, such as
target.encoder.layers_0.mlp.wo.kernel. Nothing in either format can run.
"""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import tensorstore as ts
from etils import epath

from imagen_jax import files
from imagen_jax.interop.tensors import Index, Tensor, few

FILE, VERSION = "checkpoint", 3
_CHUNK = 2**26  # bytes: as large as t5x makes them
_STACK = re.compile(r"encoder/(?:encoder|layers)/(.+)")
_SPLIT_HEADS = re.compile(r".*/attention/(query|key|value|out)/kernel")


def is_checkpoint(path: epath.Path) -> bool:
  """Whether a folder, gs:// ones included, has a file of that name."""
  return (path / FILE).exists()


def encoder(path: epath.Path) -> dict[str, Tensor]:
  """What a checkpoint's target has but for a decoder, layer by layer, by path.

  ValueError, naming the file, if it is damaged, not t5x's, or of another
  version, or if an array is missing.
  """
  leaves = {
    name: leaf
    for name, leaf in _target(path).items()
    if not name.startswith("decoder/")
  }
  found = {}
  for name, tensor in _tensors(path, leaves).items():
    for layer, part in _unstacked(name, tensor).items():
      found[layer] = _joined_heads(layer, part)
  return found


def save(path: epath.Path, tree: Any) -> None:
  """Writes parameters as a new checkpoint of step 0; numbers stay as they are.

  Last the file that makes it one. ValueError if there is one, or on failure.
  """
  if is_checkpoint(path):
    raise ValueError(f"{path} has a checkpoint, expected a new folder")
  flat = flax.traverse_util.flatten_dict(tree, sep="/")
  try:
    path.mkdir(parents=True, exist_ok=True)
    target = {name: _save(path, name, flat[name]) for name in flat}
    target = flax.traverse_util.unflatten_dict(target, sep="/")
    state = {"step": np.int32(0), "param_states": {}}
    contents = {"target": target, "state": state}
    contents = {"version": VERSION, "optimizer": contents}
    data = flax.serialization.msgpack_serialize(contents)
  except Exception as error:  # stores raise many kinds
    why = files.reason(error)
    raise ValueError(f"{path} cannot be written: {why}") from error
  files.write(path / FILE, data)


def _target(path: epath.Path) -> dict[str, Any]:
  """The leaves of a checkpoint's target by path: arrays or specs of such."""
  file = path / FILE
  try:
    contents = flax.serialization.msgpack_restore(file.read_bytes())
    version = contents["version"]
  except OSError as error:
    raise ValueError(
      f"weights {file} cannot be read: {error.strerror}"
    ) from error
  except (ValueError, TypeError, KeyError, AttributeError):
    raise ValueError(
      f"weights {file} are damaged or not of t5x, expected its checkpoint of "
      f"version {VERSION}"
    ) from None
  if version != VERSION:
    raise ValueError(
      f"weights {file} are of t5x's version {version!r}, expected {VERSION}"
    )
  try:
    target = contents["optimizer"]["target"]
    flat = flax.traverse_util.flatten_dict(
      target, sep="/", is_leaf=lambda _, leaf: _is_spec(leaf)
    )
  except (TypeError, KeyError, AssertionError, AttributeError):
    flat = {}
  if not flat or not all(
    _is_spec(leaf) or isinstance(leaf, np.ndarray) for leaf in flat.values()
  ):
    raise ValueError(
      f"weights {file} have no parameters as t5x stores them, expected them "
      "under optimizer/target"
    )
  return flat


def _is_spec(leaf: Any) -> bool:
  keys = {"driver", "kvstore", "metadata"}
  return isinstance(leaf, Mapping) and keys <= leaf.keys()


def _folder(name: str) -> str:
  return f"target.{name}".replace("/", ".")


def _tensors(path: epath.Path, leaves: Mapping[str, Any]) -> dict[str, Tensor]:
  """The leaves as tensors; large ones are opened all at once, not yet read.

  Chunks that are in memory stay there as long as they have the size of one
  array: of several parts or layers, all may need the same ones.
  """
  stored = {name: leaf for name, leaf in leaves.items() if _is_spec(leaf)}
  try:
    specs = {name: _spec(path, leaf) for name, leaf in stored.items()}
    size = max(map(_bytes, stored.values()), default=0)
  except (AttributeError, TypeError, KeyError, ZeroDivisionError):
    raise ValueError(
      f"weights {path / FILE} describe arrays in another way than t5x"
    ) from None
  context = ts.Context({"cache_pool": {"total_bytes_limit": size}})
  start = lambda spec: ts.open(spec, context=context, open=True, read=True)
  opening = {name: start(spec) for name, spec in specs.items()}
  found, missing = {}, []
  for name, leaf in leaves.items():
    if name not in opening:
      found[name] = Tensor(leaf.shape, leaf.dtype, leaf.__getitem__)
      continue
    try:
      found[name] = _stored(path, name, opening[name].result())
    except ValueError as error:
      if not str(error).startswith("NOT_FOUND"):
        raise _unreadable(path, name, error) from error
      missing.append(_folder(name))
  if missing:
    raise ValueError(f"weights {path} lack the folders {few(missing)}")
  return found


def _bytes(spec: Mapping[str, Any]) -> int:
  """Of the whole array in memory, as float32: its last chunks may jut out."""
  shape, chunks = spec["metadata"]["shape"], spec["metadata"]["chunks"]
  return 4 * math.prod(-(-n // c) * c for n, c in zip(shape, chunks))


def _stored(path: epath.Path, name: str, store: Any) -> Tensor:
  def read(index: Index) -> np.ndarray:
    try:
      return store[index].read().result()
    except ValueError as error:
      raise _unreadable(path, name, error) from error

  return Tensor(tuple(store.shape), store.dtype.numpy_dtype, read)


def _unreadable(path: epath.Path, name: str, error: ValueError) -> ValueError:
  said = str(error).split(" [tensorstore_spec")[0].replace("\n", " ")
  return ValueError(f"weights {path} have {name} damaged: {said}")


def _spec(path: epath.Path, stored: Mapping[str, Any]) -> dict[str, Any]:
  """Where a stored spec's array is now; the rest is in the array's folder."""
  name = stored["kvstore"].get("path") or stored.get("path", "")
  name = name.rstrip("/").rpartition("/")[-1]
  return {
    "driver": "zarr",
    "kvstore": _kvstore(path, name),
    "recheck_cached_data": "open",
    # Zeros otherwise, where a chunk was lost on the way.
    "fill_missing_data_reads": False,
  }


def _kvstore(path: epath.Path, name: str) -> dict[str, str]:
  """TensorStore's description of a folder, local or gs://."""
  if not str(path).startswith("gs://"):
    return {"driver": "file", "path": f"{os.path.abspath(path)}/{name}/"}
  bucket, _, key = str(path).removeprefix("gs://").partition("/")
  return {"driver": "gcs", "bucket": bucket, "path": f"{key}/{name}/"}


def _unstacked(name: str, tensor: Tensor) -> dict[str, Tensor]:
  """The layers of one that has them along its second axis, as t5x scans."""
  match = _STACK.fullmatch(name)
  if not match or len(tensor.shape) < 2:
    return {name: tensor}
  shape = tensor.shape[:1] + tensor.shape[2:]

  def layer(i: int) -> Tensor:
    at = slice(i, i + 1)
    read = lambda index: tensor.read((*index[:1], at, *index[1:])).squeeze(1)
    return Tensor(shape, tensor.dtype, read)

  names = [f"encoder/layers_{i}/{match[1]}" for i in range(tensor.shape[1])]
  return {name: layer(i) for i, name in enumerate(names)}


def _joined_heads(name: str, tensor: Tensor) -> Tensor:
  """Kernels of attention as ours, where Flaxformer has [heads, head_dim]."""
  match = _SPLIT_HEADS.fullmatch(name)
  if not match or len(tensor.shape) != 3:
    return tensor
  a, b, c = tensor.shape
  shape = (a * b, c) if match[1] == "out" else (a, b * c)
  whole = (slice(None),) * 3
  read = lambda index: tensor.read(whole).reshape(shape)[index]
  return Tensor(shape, tensor.dtype, read)


def _save(path: epath.Path, name: str, value: Any) -> Any:
  """Writes an array of two axes or more; returns what stands for it."""
  value = np.asarray(value)
  if value.ndim < 2:
    return value
  folder = _folder(name)
  spec = {
    "driver": "zarr",
    "dtype": value.dtype.name,
    "metadata": {
      "shape": list(value.shape),
      "chunks": _chunks(value),
      "compressor": {"id": "gzip", "level": 1},
    },
  }
  there = spec | {"kvstore": _kvstore(path, folder)}
  store = ts.open(there, create=True, delete_existing=True).result()
  store.write(value).result()
  return spec | {"kvstore": {"driver": "file", "path": folder}}


def _chunks(value: np.ndarray) -> list[int]:
  """The shape of its chunks: the largest side in halves until they fit."""
  chunks = list(value.shape)
  while math.prod(chunks) * value.itemsize > _CHUNK:
    largest = chunks.index(max(chunks))
    chunks[largest] = -(-chunks[largest] // 2)
  return chunks
