"""Tensors in files: checked against a net's shapes, then read and sharded."""

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
_NAMED = 4  # names to show for one kind of mistake
_NAME = 120  # characters of the longest name that is shown unquoted
_WORDS = 200  # characters to show of a library's message


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Describes a tensor in a file, to read in parts.

  Attributes:
    shape: its shape.
    dtype: its numpy dtype, or safetensors' name of a dtype unfit for weights.
    read: returns the part at an index of one slice per axis.
  """

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[Index], np.ndarray]

  @property
  def T(self) -> "Tensor":
    """The tensor with its axes reversed."""
    read = lambda index: self.read(index[::-1]).T
    return Tensor(self.shape[::-1], self.dtype, read)

  def first(self, count: int) -> "Tensor":
    """Returns the first `count` rows."""

    def read(index: Index) -> np.ndarray:
      return self.read((slice(*index[0].indices(count)), *index[1:]))

    return Tensor((count, *self.shape[1:]), self.dtype, read)

  def __str__(self) -> str:
    return f"{self.dtype}[{_sides(self.shape)}]"


def check(
  where: Any, found: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> None:
  """Checks the tensors of a file against a net's parameters.

  Args:
    where: the file, for messages.
    found: its tensors by name.
    shapes: the shapes of the net's parameters, by name.

  Raises:
    ValueError: tensors are missing, unknown, of another shape, or not floats of
      at least 16 bits. Integers are no weights, and 8-bit floats would need
      scales. One sentence names them all.
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
  """Joins the first four names, and counts the rest."""
  rest = len(names) - _NAMED
  return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def shown(name: str) -> str:
  """Formats the name of a file or a tensor for messages.

  A foreign name may hold terminal escape sequences or megabytes. It is then
  quoted and cut.
  """
  plain = len(name) <= _NAME and name.isprintable() and name.strip() == name
  return name if plain and name else files.quote(name)


def clipped(said: str) -> str:
  """Formats a library's message as one line, cut as it may quote a file."""
  line = " ".join(said.split())
  fine = line.isprintable() and len(line) <= _WORDS
  return line if fine else files.quote(line, _WORDS)


def place(
  found: Mapping[str, Tensor], like: Any, placement: Placement | None = None
) -> Any:
  """Reads tensors, one after the other in the order of `found`, onto devices.

  Args:
    found: the tensors by path.
    like: the tree, shapes and dtypes of the parameters.
    placement: how to shard them; a process reads only the shards of its own
      devices. None puts unsharded tensors on the first device.

  Returns:
    The tree of arrays.
  """
  flat = flax.traverse_util.flatten_dict(like, sep="/")
  where = dict.fromkeys(flat)
  if placement is not None:
    where = flax.traverse_util.flatten_dict(placement.params(like), sep="/")
  names = [name for name in found if name in flat]
  placed = {n: _put(found[n], flat[n].dtype, where[n]) for n in names}
  return flax.traverse_util.unflatten_dict(placed, sep="/")


def quantised(found: Mapping[str, Tensor], like: Any) -> dict[str, Tensor]:
  """Quantises the kernels that are int8 in `like`, when they are read.

  Such a kernel becomes two tensors: int8 values, then their scales. A part of
  either reads entire columns, as each column has one scale.
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
  """Returns a kernel [n, m] as int8, and its scale [m]."""
  columns = lambda at: quantise(tensor.read((slice(None), at)))
  kernel = lambda index: columns(index[1])[0][index[0]]
  scale = lambda index: columns(index[0])[1]
  return {
    name: Tensor(tensor.shape, np.dtype("int8"), kernel),
    name + "_scale": Tensor(tensor.shape[1:], np.dtype("float32"), scale),
  }


def _misfit(tensor: Tensor, shape: Sequence[int]) -> str:
  """Returns the expected dtype or shape if a tensor differs, else ""."""
  wide = isinstance(tensor.dtype, np.dtype) and tensor.dtype.itemsize > 1
  if not (wide and jnp.issubdtype(tensor.dtype, jnp.floating)):
    return f"floats of 16 bits or more, {_sides(shape)}"
  return "" if tensor.shape == tuple(shape) else _sides(shape)


def _sides(shape: Sequence[int]) -> str:
  return ",".join(map(str, shape))


def _put(tensor: Tensor, dtype: Any, sharding: Any) -> jax.Array:
  """Reads a tensor onto its devices in a dtype."""
  parts = {}  # devices with the same shard request it again

  def part(index: Index) -> np.ndarray:
    """Reads a part, or returns it if it was read before."""
    key = str(index)
    if key not in parts:
      # Cast by numpy: JAX would compile a program for every shape.
      parts[key] = np.asarray(tensor.read(index), dtype)
    return parts[key]

  if sharding is None:
    array = jax.device_put(part((slice(None),) * len(tensor.shape)))
  else:
    array = jax.make_array_from_callback(tensor.shape, sharding, part)
  # Arrays that wait for their transfer would pile up in host memory.
  return array.block_until_ready()
