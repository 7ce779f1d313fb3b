"""t5x checkpoints: a msgpack file `checkpoint`, and zarr arrays beside it.

  {"version": 3, "optimizer": {"target": {...}, "state": {...}}}

Small leaves of the target are arrays. A large leaf is TensorStore's
specification of a stored array. Its path is from the machine that wrote it;
the path's last part is a folder beside the file, such as
target.encoder.layers_0.mlp.wo.kernel. Neither format can run code.

Newer versions of t5x save by Orbax, into a folder `state`. Their file has no
version, and names a folder as PLACEHOLDER://target.encoder.(...).

No size in these files is trusted: memory is allocated by the net's shapes.
"""

import json
import math
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.serialization
import flax.traverse_util
import numpy as np
import tensorstore as ts
from etils import epath

from imagen_jax import files
from imagen_jax.interop.tensors import Index, Tensor, clipped, few, shown

FILE, VERSION = "checkpoint", 3
NOTES = "imagen_jax.json"
STATE, PLACEHOLDER = "state", "PLACEHOLDER://"
_CHUNK = 2**26  # bytes of a chunk, at most, as in t5x
_LAYER = re.compile(r"encoder/layers_\d+/")
_STACK = re.compile(r"encoder/(?:encoder|layers)/(.+)")
_SPLIT_HEADS = re.compile(r".*/attention/(query|key|value|out)/kernel")
_UNKNOWN = Tensor((), np.dtype("float32"), lambda _: None)  # never read


def find(path: epath.Path) -> epath.Path | None:
  """Finds the folder with the arrays of a checkpoint.

  Args:
    path: the folder, the file in it, or the folder of a newer t5x, which has
      the arrays in `state`. It may be on gs://.

  Returns:
    The folder; None if the path is no checkpoint.
  """
  if path.name == FILE and path.is_file():
    return path.parent
  folders = (path, path / STATE)
  return next((folder for folder in folders if (folder / FILE).exists()), None)


def encoder(
  path: epath.Path, shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
  """Opens the encoder in a checkpoint's target.

  Args:
    path: the checkpoint's folder, as find returns it.
    shapes: the shapes of the net's parameters, by path.

  Returns:
    The unread tensors by path, one for each layer. Tensors that the net does
    not have are not opened.

  Raises:
    ValueError: the checkpoint is damaged, not t5x's, or of another version or
      depth, or an array is missing. The sentence names the file.
  """
  layers = len({name.split("/")[1] for name in shapes if _LAYER.match(name)})
  leaves = {
    name: leaf
    for name, leaf in _target(path).items()
    if not name.startswith("decoder/")
  }
  sizes = {name: _size(_parts(name, layers), shapes) for name in leaves}
  found = {name: _UNKNOWN for name, size in sizes.items() if size is None}
  leaves = {name: leaf for name, leaf in leaves.items() if name not in found}
  # 4 bytes a value, twice: an array's last chunks may exceed its bounds.
  cache = 8 * max((sizes[name] for name in leaves), default=0)
  for name, tensor in _tensors(path, leaves, cache).items():
    for layer, part in _unstacked(path, name, tensor, layers).items():
      found[layer] = _joined_heads(layer, part)
  return found


def _parts(name: str, layers: int) -> list[str]:
  """Returns the paths of a stacked leaf's layers, or the leaf's own path."""
  match = _STACK.fullmatch(name)
  if not match:
    return [name]
  return [f"encoder/layers_{i}/{match[1]}" for i in range(layers)]


def _size(
  parts: Sequence[str], shapes: Mapping[str, Sequence[int]]
) -> int | None:
  """Counts the values of these parts in the net; None if it has no part."""
  wanted = [math.prod(shapes[part]) for part in parts if part in shapes]
  return sum(wanted) if wanted else None


def save(
  path: epath.Path, tree: Any, notes: Mapping[str, str] | None = None
) -> None:
  """Writes parameters, in their own dtypes, as a new checkpoint of step 0.

  The file `checkpoint` is written last, as it makes the folder a checkpoint.

  Args:
    path: the folder.
    tree: the parameters.
    notes: are written to a file of this package, as t5x's file has no place
      for them.

  Raises:
    ValueError: the folder has a checkpoint, or cannot be written.
  """
  check_new(path)
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
  if notes:
    files.write(path / NOTES, json.dumps(dict(notes), indent=2) + "\n")
  files.write(path / FILE, data)


def check_new(path: epath.Path) -> None:
  """Raises ValueError if a folder has a checkpoint."""
  if find(path) is not None:
    raise ValueError(f"{path} has a checkpoint, expected a new folder")


def read_notes(path: epath.Path) -> dict[str, str]:
  """Reads the notes that save wrote; empty for t5x's own checkpoints."""
  file = path / NOTES
  notes = files.read_json(file, "notes") if file.exists() else {}
  if not isinstance(notes, dict):
    raise ValueError(f"notes {file} are no mapping")
  return {key: value for key, value in notes.items() if isinstance(value, str)}


def _target(path: epath.Path) -> dict[str, np.ndarray | str]:
  """Reads the leaves of a checkpoint's target: arrays or names of folders."""
  file = path / FILE
  try:
    contents = flax.serialization.msgpack_restore(file.read_bytes())
    by_orbax = "version" not in contents and "target" in contents
    version = VERSION if by_orbax else contents["version"]
  except OSError as error:
    raise ValueError(
      f"weights {file} cannot be read: {files.reason(error)}"
    ) from error
  except Exception as error:  # a damaged file fails in any way
    raise ValueError(
      f"weights {file} are damaged or not of t5x, expected its checkpoint of "
      f"version {VERSION}"
    ) from error
  if version != VERSION:
    raise ValueError(
      f"weights {file} are of t5x's version {reprlib.repr(version)}, expected "
      f"{VERSION}"
    )
  try:
    target = contents if by_orbax else contents["optimizer"]
    flat = flax.traverse_util.flatten_dict(
      target["target"], sep="/", is_leaf=lambda _, leaf: _is_spec(leaf)
    )
    leaves = {name: _leaf(value) for name, value in flat.items()}
  except (
    AssertionError, AttributeError, KeyError, RecursionError, TypeError,
  ):  # fmt: skip
    leaves = {}
  if not leaves:
    raise ValueError(
      f"weights {file} have no parameters as t5x stores them, expected them "
      "under optimizer/target"
    )
  return leaves


def _is_spec(leaf: Any) -> bool:
  keys = {"driver", "kvstore", "metadata"}
  return isinstance(leaf, Mapping) and keys <= leaf.keys()


def _leaf(value: Any) -> np.ndarray | str:
  """Returns an array, or the name of its folder; TypeError for all else."""
  if isinstance(value, np.ndarray):
    return value
  if _is_spec(value):
    name = value["kvstore"].get("path") or value.get("path", "")
  elif isinstance(value, str) and value.startswith(PLACEHOLDER):
    name = value.removeprefix(PLACEHOLDER)
  else:
    raise TypeError
  name = name.rstrip("/").rpartition("/")[-1]
  if name in ("", ".", "..") or not name.isprintable():
    raise TypeError
  return name


def _folder(name: str) -> str:
  return f"target.{name}".replace("/", ".")


def _tensors(
  path: epath.Path, leaves: Mapping[str, np.ndarray | str], cache: int
) -> dict[str, Tensor]:
  """Opens the leaves as unread tensors, all large ones at the same time.

  Up to `cache` bytes of chunks, the size of the largest array, stay in memory:
  several parts or layers may need the same chunks.
  """
  context = ts.Context({"cache_pool": {"total_bytes_limit": cache}})
  opening = {
    name: ts.open(_spec(path, folder), context=context, open=True, read=True)
    for name, folder in leaves.items()
    if isinstance(folder, str)
  }
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
      missing.append(shown(leaf))
  if missing:
    raise ValueError(f"weights {path} lack the folders {few(missing)}")
  return found


def _stored(path: epath.Path, name: str, store: Any) -> Tensor:
  """Wraps an opened array as a tensor; ValueError for too large chunks."""

  def read(index: Index) -> np.ndarray:
    try:
      return store[index].read().result()
    except ValueError as error:
      raise _unreadable(path, name, error) from error

  # Reading one number takes the memory of its chunk.
  chunk = store.chunk_layout.read_chunk.shape
  if math.prod(chunk) > max(math.prod(store.shape), _CHUNK):
    raise ValueError(
      f"its chunks of {chunk} are larger than it is, {store.shape}"
    )
  return Tensor(tuple(store.shape), store.dtype.numpy_dtype, read)


def _unreadable(path: epath.Path, name: str, error: ValueError) -> ValueError:
  said = clipped(str(error).split(" [tensorstore_spec")[0])
  return ValueError(f"weights {path} have {shown(name)} damaged: {said}")


def _spec(path: epath.Path, folder: str) -> dict[str, Any]:
  """Returns TensorStore's specification of an array in a checkpoint."""
  return {
    "driver": "zarr",
    "kvstore": _kvstore(path, folder),
    "recheck_cached_data": "open",
    # True would read a lost chunk as zeros.
    "fill_missing_data_reads": False,
  }


def _kvstore(path: epath.Path, name: str) -> dict[str, str]:
  """Returns TensorStore's specification of a folder, local or gs://."""
  if not str(path).startswith("gs://"):
    return {"driver": "file", "path": f"{os.path.abspath(path)}/{name}/"}
  bucket, _, key = str(path).removeprefix("gs://").partition("/")
  return {"driver": "gcs", "bucket": bucket, "path": f"{key}/{name}/"}


def _unstacked(
  path: epath.Path, name: str, tensor: Tensor, layers: int
) -> dict[str, Tensor]:
  """Splits a tensor that stacks layers on axis 1, as t5x's scan does."""
  if not _STACK.fullmatch(name) or len(tensor.shape) < 2:
    return {name: tensor}
  if tensor.shape[1] != layers:
    raise ValueError(
      f"weights {path} have {shown(name)} of {tensor.shape[1]} layers, "
      f"expected {layers}"
    )
  shape = tensor.shape[:1] + tensor.shape[2:]

  def layer(i: int) -> Tensor:
    at = slice(i, i + 1)
    read = lambda index: tensor.read((*index[:1], at, *index[1:])).squeeze(1)
    return Tensor(shape, tensor.dtype, read)

  return {part: layer(i) for i, part in enumerate(_parts(name, layers))}


def _joined_heads(name: str, tensor: Tensor) -> Tensor:
  """Joins the axes [heads, head_dim] of Flaxformer's attention kernels."""
  match = _SPLIT_HEADS.fullmatch(name)
  if not match or len(tensor.shape) != 3:
    return tensor
  a, b, c = tensor.shape
  shape = (a * b, c) if match[1] == "out" else (a, b * c)
  whole = (slice(None),) * 3
  read = lambda index: tensor.read(whole).reshape(shape)[index]
  return Tensor(shape, tensor.dtype, read)


def _save(path: epath.Path, name: str, value: Any) -> Any:
  """Writes an array of two axes or more; returns its leaf in the checkpoint."""
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
  """Returns the shape of chunks: the largest axis is halved until they fit."""
  chunks = list(value.shape)
  while math.prod(chunks) * value.itemsize > _CHUNK:
    largest = chunks.index(max(chunks))
    chunks[largest] = -(-chunks[largest] // 2)
  return chunks
