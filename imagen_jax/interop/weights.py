"""Weights in one safetensors file, with parameters named by their path."""

import contextlib
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from imagen_jax import files
from imagen_jax.checkpoints.manager import check_run, restore_ema
from imagen_jax.interop.tensors import Tensor, check, clipped, place, shown
from imagen_jax.parallel.sharding import Placement

# Endings of pickles, which run their author's code when they are opened.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MOST_HEADER = 100_000_000  # bytes, the limit of the format
# The dtypes of weights. Other dtypes keep their names in safetensors.
_DTYPES = {
  "F64": jnp.dtype("float64"),
  "F32": jnp.dtype("float32"),
  "F16": jnp.dtype("float16"),
  "BF16": jnp.dtype("bfloat16"),
}


def load(
  path: str | os.PathLike, like: Any, placement: Placement | None = None
) -> Any:
  """Loads weights from a .safetensors file, or a training run's EMA weights.

  Args:
    path: the file, or the run's folder.
    like: the tree, shapes and dtypes of the parameters, to which they are cast.
    placement: how to shard them; a device gets its own shards only. None puts
      all on the first device.

  Raises:
    ValueError: as load_weights and restore_ema, or the file is a pickle.
  """
  check_no_pickle(path)
  if epath.Path(path).suffix == ".safetensors":
    return load_weights(path, like, placement)
  # A run keeps float32, of which its checksums are.
  saved = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), like
  )
  places = None if placement is None else placement.params(saved)
  _, ema, _ = restore_ema(str(path), saved, places)
  return jax.tree.map(_cast, ema, like)


def _cast(array: jax.Array, like: Any) -> jax.Array:
  """Casts an array on the host, for which JAX would compile a program."""
  if array.dtype == like.dtype:
    return array
  shards = [
    jax.device_put(np.asarray(shard.data).astype(like.dtype), shard.device)
    for shard in array.addressable_shards
  ]
  return jax.make_array_from_single_device_arrays(
    array.shape, array.sharding, shards
  )


def save_weights(
  path: str | os.PathLike,
  params: Any,
  *,
  dtype: Any = jnp.bfloat16,
  metadata: Mapping[str, str] | None = None,
) -> int:
  """Writes a tree of parameters atomically.

  Args:
    path: a local or gs:// path. Missing folders are created.
    params: the tree.
    dtype: the dtype to store; None keeps the dtypes.
    metadata: the metadata of the file.

  Returns:
    The size of the file in bytes.

  Raises:
    ValueError: the file cannot be written.
  """
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  flat = {name: np.asarray(value, dtype) for name, value in flat.items()}
  data = safetensors.numpy.save(flat, dict(metadata or {}))
  files.write(path, data, parents=True)
  return len(data)


def check_no_pickle(path: str | os.PathLike) -> None:
  """Raises ValueError for a file with a pickle's ending, without opening it."""
  if str(path).endswith(PICKLES):
    raise ValueError(
      f"weights {path} are a pickle, which can run anything, expected "
      "safetensors"
    )


def load_weights(
  path: str | os.PathLike, like: Any, placement: Placement | None = None
) -> Any:
  """Loads a file's parameters in the tree and dtypes of `like` (shapes).

  They are sharded as in `load`.

  Raises:
    ValueError: the file is missing or damaged, or its parameters differ from
      `like`. The sentence names the file.
  """
  wanted = flax.traverse_util.flatten_dict(like, sep="/")
  with _local(epath.Path(path)) as local:
    found = open_file(local, path)
    check(path, found, {name: leaf.shape for name, leaf in wanted.items()})
    return place(found, like, placement)


def check_file(path: str | os.PathLike, like: Any) -> None:
  """Checks the file or run that load would read, without reading its tensors.

  Raises:
    ValueError: as load, except for damage within tensors or checkpoints.
  """
  check_no_pickle(path)
  path = epath.Path(path)
  if path.suffix != ".safetensors":
    check_run(str(path))
    return
  wanted = flax.traverse_util.flatten_dict(like, sep="/")
  is_local = "://" not in os.fspath(path)
  found = open_file(path) if is_local else _described(path)
  check(path, found, {name: leaf.shape for name, leaf in wanted.items()})


def open_file(path: Any, name: Any = None) -> dict[str, Tensor]:
  """Opens a safetensors file.

  Args:
    path: the file, on a local disk.
    name: the path in messages; None means the file's.

  Returns:
    Its tensors by name. Only the parts that are read enter memory.

  Raises:
    ValueError: the file is missing, damaged or of another format.
  """
  with reading(path, name):
    file = safetensors.safe_open(path, "numpy")
    names = file.keys()  # it cannot be iterated over itself
    return {name: _tensor(file, name) for name in names}


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """Reads the metadata of a file that save_weights wrote.

  Raises:
    ValueError: the file cannot be read, or has no header of safetensors.
  """
  found = _header(epath.Path(path)).get("__metadata__", {})
  found = found if isinstance(found, dict) else {}
  return {key: value for key, value in found.items() if isinstance(value, str)}


def _header(path: epath.Path) -> dict[str, Any]:
  """Reads the header, which describes the tensors, and no more of the file."""
  with reading(path), path.open("rb") as file:
    size = int.from_bytes(file.read(8), "little")
    data = file.read(min(size, _MOST_HEADER + 1))
    if not len(data) == size <= _MOST_HEADER:
      raise safetensors.SafetensorError("the header is cut or too large")
    header = files.parse_json(data, f"the header of weights {path}")
    if not isinstance(header, dict):
      raise safetensors.SafetensorError("the header has no tensors")
  return header


def _described(path: epath.Path) -> dict[str, Tensor]:
  """Returns the shapes and dtypes of a file's tensors, without `read`."""
  found = {}
  with reading(path):
    for name, about in _header(path).items():
      if name == "__metadata__":
        continue
      try:
        dtype, shape = (
          about["dtype"],
          tuple(map(operator.index, about["shape"])),
        )
        dtype = _DTYPES.get(dtype, shown(str(dtype)))
      except (KeyError, TypeError) as error:
        said = f"the header has no tensors: {error}"
        raise safetensors.SafetensorError(said) from error
      found[name] = Tensor(shape, dtype, None)
  return found


def _tensor(file: Any, name: str) -> Tensor:
  """Describes a tensor of an open safetensors file."""
  part = file.get_slice(name)
  dtype = part.get_dtype()
  read = lambda index: part[index]
  return Tensor(tuple(part.get_shape()), _DTYPES.get(dtype, dtype), read)


@contextlib.contextmanager
def _local(path: epath.Path) -> Iterator[os.PathLike]:
  """Gives the block a local file: the path itself, or a copy of it."""
  if not files.is_remote(path):  # whose name may begin with ~
    yield path
    return
  with contextlib.ExitStack() as stack:
    with reading(path):
      local = stack.enter_context(files.local_copy(path))
    yield pathlib.Path(local)


@contextlib.contextmanager
def reading(path: Any, name: Any = None) -> Iterator[None]:
  """Converts the block's errors on reading a file to a ValueError.

  Args:
    path: the file.
    name: the path in messages; None means the file's.

  Raises:
    ValueError: the file, which the sentence names, cannot be read, is damaged
      or is not safetensors.
  """
  name = path if name is None else name
  try:
    with path.open("rb"):
      pass
    yield
  except OSError as error:
    raise ValueError(
      f"weights {name} cannot be read: {files.reason(error)}"
    ) from error
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"weights {name} are damaged or not safetensors: {clipped(str(error))}"
    ) from error
