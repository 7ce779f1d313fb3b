"""Tensors of files: compared with those wanted, then read into place."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.nets.int8 import quantise
from imagen_jax.parallel.sharding import Placement

Index = tuple[slice, ...]
_NAMED = 4  # of one kind of mistake, so many names are told


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One that lies in a file: read(one slice per axis) gives a part of it."""

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[Index], np.ndarray]

  @property
  def T(self) -> "Tensor":
    """With its axes in the other order."""
    read = lambda index: self.read(index[::-1]).T
    return Tensor(self.shape[::-1], self.dtype, read)

  def first(self, count: int) -> "Tensor":
    """The first of its rows."""

    def read(index: Index) -> np.ndarray:
      return self.read((slice(*index[0].indices(count)), *index[1:]))

    return Tensor((count, *self.shape[1:]), self.dtype, read)

  def __str__(self) -> str:
    return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def check(
  where: Any, found: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> None:
  """ValueError that names all at once what is missing, unknown or misshaped.

  Shapes are those wanted, by name. Integers and the floats of a byte, which
  have scales somewhere, are refused too.
  """
  odd = [
    f"{name} as {found[name]} (expected {','.join(map(str, shape))})"
    for name, shape in shapes.items()
    if name in found and not _fits(found[name], shape)
  ]
  amiss = {
    "lack": [name for name in shapes if name not in found],
    "have the unknown": [name for name in found if name not in shapes],
    "have": odd,
  }
  said = [f"{what} {few(names)}" for what, names in amiss.items() if names]
  if said:
    raise ValueError(
      f"weights {where} are not those of the config's net: they "
      + "; they ".join(said)
    )


def few(names: Sequence[str]) -> str:
  """The first names, and how many more there are."""
  rest = len(names) - _NAMED
  return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def place(
  found: Mapping[str, Tensor], like: Any, placement: Placement | None = None
) -> Any:
  """The tensors, read in the dtypes of `like` into the places of a placement.

  One after the other, in the order of `found`; a process reads what its own
  devices hold. Without a placement they are whole, on the first device.
  """
  flat = flax.traverse_util.flatten_dict(like, sep="/")
  where = dict.fromkeys(flat)
  if placement is not None:
    where = flax.traverse_util.flatten_dict(placement.params(like), sep="/")
  names = [name for name in found if name in flat]
  placed = {n: _put(found[n], flat[n].dtype, where[n]) for n in names}
  return flax.traverse_util.unflatten_dict(placed, sep="/")


def quantised(found: Mapping[str, Tensor], like: Any) -> dict[str, Tensor]:
  """Tensors in two where `like` has int8: the kernel and, after it, its scale.

  A part of either is read as whole columns, which have one scale.
  """
  flat = flax.traverse_util.flatten_dict(like, sep="/")
  result = {}
  for name, tensor in found.items():
    if name in flat and flat[name].dtype == jnp.int8:
      result |= _quantised(name, tensor)
    else:
      result[name] = tensor
  return result


def _quantised(name: str, tensor: Tensor) -> dict[str, Tensor]:
  """A kernel [n, m] in int8, and its scale [m]."""
  columns = lambda at: quantise(tensor.read((slice(None), at)))
  kernel = lambda index: columns(index[1])[0][index[0]]
  scale = lambda index: columns(index[0])[1]
  return {
    name: Tensor(tensor.shape, np.dtype("int8"), kernel),
    name + "_scale": Tensor(tensor.shape[1:], np.dtype("float32"), scale),
  }


def _fits(tensor: Tensor, shape: Sequence[int]) -> bool:
  known = isinstance(tensor.dtype, np.dtype) and tensor.dtype.itemsize > 1
  floats = known and jnp.issubdtype(tensor.dtype, jnp.floating)
  return floats and tensor.shape == tuple(shape)


def _put(tensor: Tensor, dtype: Any, sharding: Any) -> jax.Array:
  parts = {}  # devices of which several hold the same part ask for it again

  def part(index: Index) -> np.ndarray:
    key = str(index)
    if key not in parts:
      # Cast by numpy: JAX would compile a program for every shape.
      parts[key] = np.asarray(tensor.read(index), dtype)
    return parts[key]

  if sharding is None:
    array = jax.device_put(part((slice(None),) * len(tensor.shape)))
  else:
    array = jax.make_array_from_callback(tensor.shape, sharding, part)
  # What waits for its transfer to a device would pile up in host memory.
  return array.block_until_ready()
