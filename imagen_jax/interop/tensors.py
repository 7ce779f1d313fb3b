"""Tensors of files: compared with those wanted, then read into place."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import files
from imagen_jax.nets.int8 import quantise
from imagen_jax.parallel.sharding import Placement

Index = tuple[slice, ...]
_NAMED = 4  # of one kind of mistake, so many names are told
_NAME = 120  # characters of a name that is told as it is
_WORDS = 200  # characters of what a library says


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
    return f"{self.dtype}[{_sides(self.shape)}]"


def check(
  where: Any, found: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> None:
  """Checks the tensors of a file against those that a net wants.

  Args:
    where: the file, for messages.
    found: its tensors by name.
    shapes: the shapes that the net wants, by name.

  Raises:
    ValueError: tensors are missing, unknown, of another shape, or no floats of
      16 bits or more. Integers hold no weights, and floats of a byte have
      scales somewhere. One sentence names them all.
  """
  odd = []
  for name, shape in shapes.items():
    if name in found and (expected := _misfit(found[name], shape)):
      odd.append(f"{shown(name)} as {found[name]} (expected {expected})")
  lacking = [shown(name) for name in shapes if name not in found]
  unknown = [shown(name) for name in found if name not in shapes]
  amiss = {"lack": lacking, "have the unknown": unknown, "have": odd}
  said = [f"{what} {few(names)}" for what, names in amiss.items() if names]
  if said:
    raise ValueError(
      f"weights {where} are not those of the config's net: they "
      + "; they ".join(said)
    )


def few(names: Sequence[str]) -> str:
  """Returns the first names, and how many more there are."""
  rest = len(names) - _NAMED
  return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def shown(name: str) -> str:
  """Returns a file's or a tensor's name as messages have it.

  A name that comes from elsewhere may hold escape sequences of terminals, or
  megabytes: then it is quoted and cut.
  """
  plain = len(name) <= _NAME and name.isprintable() and name.strip() == name
  return name if plain and name else files.quote(name)


def clipped(said: str) -> str:
  """Returns a library's words in one line; they may quote a whole file."""
  line = " ".join(said.split())
  fine = line.isprintable() and len(line) <= _WORDS
  return line if fine else files.quote(line, _WORDS)


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


def _misfit(tensor: Tensor, shape: Sequence[int]) -> str:
  """Returns what was expected in place of a tensor; "" if it fits."""
  wide = isinstance(tensor.dtype, np.dtype) and tensor.dtype.itemsize > 1
  if not (wide and jnp.issubdtype(tensor.dtype, jnp.floating)):
    return f"floats of 16 bits or more, {_sides(shape)}"
  return "" if tensor.shape == tuple(shape) else _sides(shape)


def _sides(shape: Sequence[int]) -> str:
  return ",".join(map(str, shape))


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
