"""Weights as one safetensors file: parameters named by path, as stored."""

import contextlib
import json
import os
import tempfile
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
from imagen_jax.checkpoints.manager import restore_ema

# By their endings; opening one runs what its author wrote.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def load(path: str | os.PathLike, like: Any) -> Any:
  """Weights from a .safetensors file, or a training run's averaged ones.

  ValueError as load_weights and restore_ema, and for a pickle.
  """
  check_no_pickle(path)
  if epath.Path(path).suffix == ".safetensors":
    return load_weights(path, like)
  _, ema, _ = restore_ema(str(path), like)
  return ema


def save_weights(
  path: str | os.PathLike,
  params: Any,
  *,
  dtype: Any = jnp.bfloat16,
  metadata: Mapping[str, str] | None = None,
) -> int:
  """Writes a tree of parameters, whole or not at all; returns its bytes.

  Folders that lack are made; gs:// paths too. ValueError if it cannot be
  written.
  """
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  flat = {name: np.asarray(value, dtype) for name, value in flat.items()}
  data = safetensors.numpy.save(flat, dict(metadata or {}))
  files.write(path, data, parents=True)
  return len(data)


def check_no_pickle(path: str | os.PathLike) -> None:
  """ValueError for a file that is called like a pickle; it is not opened."""
  if str(path).endswith(PICKLES):
    raise ValueError(
      f"weights {path} are a pickle, which can run anything, expected "
      "safetensors"
    )


def load_weights(path: str | os.PathLike, like: Any) -> Any:
  """A file's parameters in the tree and the dtypes of `like` (shapes).

  ValueError, naming the file, if it is missing or damaged, or if a parameter
  is missing, unknown or of another shape.
  """
  flat = _read(epath.Path(path))
  wanted = flax.traverse_util.flatten_dict(like, sep="/")
  for name in sorted(wanted.keys() ^ flat.keys()):
    lack = "have no" if name in wanted else "have an unknown"
    raise ValueError(f"weights {path} {lack} parameter {name}")
  for name, leaf in wanted.items():
    if flat[name].shape != leaf.shape:
      raise ValueError(
        f"weights {path} have {name} of shape {flat[name].shape}, expected "
        f"{leaf.shape}"
      )
  # Cast by numpy: JAX would compile a program for every shape.
  cast = {n: flat[n].astype(leaf.dtype) for n, leaf in wanted.items()}
  return jax.device_put(flax.traverse_util.unflatten_dict(cast, sep="/"))


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """What save_weights was told of the weights' making."""
  with epath.Path(path).open("rb") as file:
    size = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(size)).get("__metadata__", {})


def _read(path: epath.Path) -> dict[str, np.ndarray]:
  with reading(path):
    if "://" not in os.fspath(path):
      return safetensors.numpy.load_file(path)
    with tempfile.NamedTemporaryFile() as copy:
      copy.write(path.read_bytes())
      copy.flush()
      return safetensors.numpy.load_file(copy.name)


@contextlib.contextmanager
def reading(path: Any) -> Iterator[None]:
  """ValueError, naming the file, for one that cannot be read in the block."""
  try:
    with path.open("rb"):
      pass
    yield
  except OSError as error:
    raise ValueError(
      f"weights {path} cannot be read: {files.reason(error)}"
    ) from error
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"weights {path} are damaged or not safetensors: {error}"
    ) from error
