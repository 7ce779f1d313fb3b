"""The arrays of a checkpoint, read and compared with their checksums."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from imagen_jax import files
from imagen_jax.parallel.processes import Failed, raise_together

NO_MESH = jax.sharding.Mesh(np.empty((), object), ())


def load(path: epath.Path, like: Any, prefix: str = "") -> Any:
  """Reads arrays of a checkpoint.

  A checkpoint of an old version without checksums is not verified.

  Args:
    path: the checkpoint's folder.
    like: a tree of shapes, dtypes and shardings to read.
    prefix: an array of the checkpoint whose name begins with it must be in
      `like`; other arrays are ignored.

  Returns:
    The arrays, sharded as `like`.

  Raises:
    Failed: the arrays are not those that were saved.
    ValueError: the checkpoint has other arrays than `like`.
  """
  stored, sums = raise_together(lambda: _read_notes(path))
  _check_arrays(path, stored, like, prefix)
  tree = raise_together(lambda: _read_tree(path, like))
  if sums is not None:
    for name, value in checksums(tree).items():
      if sums[name] != value:
        raise Failed(f"{name} does not match its checksum")
  return tree


def read_config(path: epath.Path) -> dict[str, Any]:
  """Reads the config that a checkpoint was made with.

  Raises:
    Failed: the config is not what was saved.
  """
  config, notes = _read_json(path / "config"), path / "checksums"
  if not isinstance(config, dict):
    raise Failed("its config is no mapping")
  if notes.exists() and _read_json(notes)["config"] != crc(config):
    raise Failed("its config does not match its checksum")
  return config


def check_allowed(path: epath.Path) -> None:
  """Checks the permission to read a checkpoint that could not be read.

  Missing permission is no damage, but libraries report it in many ways, such as
  a missing file. Every process tries all files.

  Raises:
    ValueError: the permission is missing on one of the processes.
  """
  try:
    raise_together(lambda: _try_files(path))
  except Failed as error:
    raise ValueError(
      f"checkpoint {path} may not be read, expected permission to read it: "
      f"{error}"
    ) from error


def _try_files(path: epath.Path) -> None:
  """Raises the error that denies permission to read a file, and no other."""
  try:
    for item in path.iterdir():
      if item.is_dir():
        _try_files(item)
      else:
        with item.open("rb") as file:
          file.read(1)
  except Exception as error:  # object stores raise many kinds
    if _is_denial(error):
      raise


def _is_denial(error: Exception) -> bool:
  """Returns True if a disk's or gcsfs's error is about permissions."""
  if isinstance(error, PermissionError):
    return True
  code = getattr(error, "code", None)
  return code in (401, 403) or str(error).startswith("Forbidden")


def _read_notes(
  path: epath.Path,
) -> tuple[dict[str, str], dict[str, int] | None]:
  """Reads the kinds and checksums of a checkpoint's arrays, by name.

  The checksums are None if the checkpoint has none.
  """
  found = ocp.PyTreeCheckpointHandler().metadata(path / "state").tree
  stored, notes = kinds(found), None
  if (path / "checksums").exists():
    notes = _read_json(path / "checksums")["arrays"]
    if stored != {name: kind for name, (kind, _) in notes.items()}:
      raise Failed("its arrays are not those of its list of checksums")
    notes = {name: value for name, (_, value) in notes.items()}
  return stored, notes


def _read_tree(path: epath.Path, like: Any) -> Any:
  """Reads arrays by Orbax's handler: its managers wait for other processes."""
  args = ocp.args.PyTreeRestore(
    item=like,
    restore_args=ocp.checkpoint_utils.construct_restore_args(like),
    partial_restore=True,
  )
  return ocp.PyTreeCheckpointHandler().restore(path / "state", args=args)


def _read_json(item: epath.Path) -> Any:
  data = (item / "metadata").read_bytes()
  return files.parse_json(data, f"its {item.name}")


def crc(config: Mapping[str, Any]) -> int:
  """Computes the checksum of a config."""
  return zlib.crc32(json.dumps(config, sort_keys=True).encode())


def arrays_of(tree: Any) -> dict[str, Any]:
  """Returns a tree's leaves by path; they may be arrays or shapes."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def kinds(tree: Any) -> dict[str, str]:
  """Returns the dtype and shape of a tree's arrays by path, as float32[3,5]."""
  return {
    name: f"{np.dtype(leaf.dtype)}[{','.join(map(str, leaf.shape))}]"
    for name, leaf in arrays_of(tree).items()
  }


def _check_arrays(
  path: Any, stored: Mapping[str, str], like: Any, prefix: str
) -> None:
  """Raises ValueError unless a checkpoint has the arrays of like, by kind.

  Arrays of the checkpoint whose names lack the prefix may be absent in like.
  """
  wanted = kinds(like)
  for name in sorted(wanted.keys() ^ stored.keys()):
    if name in wanted or name.startswith(prefix):
      lack = "has no" if name in wanted else "has an unknown"
      raise ValueError(f"checkpoint {path} {lack} array {name}")
  for name, kind in wanted.items():
    if stored[name] != kind:
      raise ValueError(
        f"checkpoint {path} has {name} as {stored[name]}, expected {kind}"
      )


def checksums(tree: Any) -> dict[str, int]:
  """Computes a checksum of every array from its bits and their positions.

  The checksums do not depend on the devices. A change in one element always
  changes the checksum; any other change does so almost certainly.
  """
  with jax.set_mesh(NO_MESH):  # the arrays may be on fewer devices
    sums = {}
    for name, x in arrays_of(tree).items():
      sums[name] = _sum(x)
      if jax.default_backend() == "cpu":
        # CPU devices share threads. Of many programs in progress, each would
        # wait for its part on another device, and none would get a thread.
        sums[name].block_until_ready()
    return jax.tree.map(int, jax.device_get(sums))


@jax.jit  # per kind of array: one program for all compiles slowly
def _sum(x: jax.Array) -> jax.Array:
  """Sums hash(hash(position) ^ bits) over the elements, modulo 2^32."""
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  width = min(8 * x.dtype.itemsize, 32)  # wider types become pairs
  bits = jax.lax.bitcast_convert_type(x, f"uint{width}").astype(jnp.uint32)
  place, stride = jnp.zeros((), jnp.uint32), 1
  for axis in reversed(range(bits.ndim)):
    # Unlike a reshaped arange, an iota is made where the array's shards are.
    index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place += index * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  return jnp.sum(_hash(_hash(place) ^ bits), dtype=jnp.uint32)


def _hash(x: jax.Array) -> jax.Array:
  """Computes MurmurHash3's last step, which maps 32 bits one to one."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
