"""Conversions between linen's and torch's layouts of a layer's parameters."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from imagen_jax.interop.tensors import Index, Tensor

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Converts one kind of parameter between our layout and torch's.

  Attributes:
    shape: maps our shape to torch's.
    view: returns a function that reads any part, in our layout, of a torch
      tensor; takes the tensor and our shape.
    theirs: converts an array from our layout to torch's.
  """

  shape: Callable[[Shape], Shape]
  view: Callable[[Tensor, Shape], Callable[[Index], np.ndarray]]
  theirs: Callable[[np.ndarray], np.ndarray]

  def ours(self, tensor: Tensor, shape: Shape) -> Tensor:
    """Views a torch tensor in our shape; a part can still be read alone."""
    return Tensor(shape, tensor.dtype, self.view(tensor, shape))


def _conv(tensor: Tensor, shape: Shape):
  """Views torch's [out, in, H, W] as [H, W, in, out]."""

  def read(index: Index) -> np.ndarray:
    high, wide, into, out = index
    return tensor.read((out, into, high, wide)).transpose(2, 3, 1, 0)

  return read


def _rows(heads: slice, shape: Shape, dim: int) -> slice:
  """Returns the rows of torch's joined features that belong to some heads."""
  start, stop, _ = heads.indices(shape[0])
  return slice(start * dim, stop * dim)


def _heads_in(tensor: Tensor, shape: Shape):
  """Views torch's [heads * d, in] as [in, heads, d]."""

  def read(index: Index) -> np.ndarray:
    into, heads, features = index
    part = tensor.read((_rows(heads, shape[1:], shape[2]), into)).T
    return part.reshape(part.shape[0], -1, shape[2])[:, :, features]

  return read


def _heads_out(tensor: Tensor, shape: Shape):
  """Views torch's [out, heads * d] as [heads, d, out]."""

  def read(index: Index) -> np.ndarray:
    heads, features, out = index
    part = tensor.read((out, _rows(heads, shape, shape[1]))).T
    return part.reshape(-1, shape[1], part.shape[1])[:, features]

  return read


def _joined(tensor: Tensor, shape: Shape):
  """Views torch's [heads * d] as [heads, d]."""

  def read(index: Index) -> np.ndarray:
    heads, features = index
    part = tensor.read((_rows(heads, shape, shape[1]),))
    return part.reshape(-1, shape[1])[:, features]

  return read


# By our layouts: kernels [in, out], [H, W, in, out], [in, heads, d] and
# [heads, d, out], biases [heads, d]. Torch has the outputs first and joins the
# heads.
LAYOUTS = {
  "same": Layout(lambda s: s, lambda t, s: t.read, lambda a: a),
  "dense": Layout(lambda s: s[::-1], lambda t, s: t.T.read, lambda a: a.T),
  "conv": Layout(
    lambda s: (s[3], s[2], s[0], s[1]), _conv, lambda a: a.transpose(3, 2, 0, 1)
  ),
  "heads_in": Layout(
    lambda s: (s[1] * s[2], s[0]),
    _heads_in,
    lambda a: a.reshape(len(a), -1).T,
  ),
  "heads_out": Layout(
    lambda s: (s[2], s[0] * s[1]),
    _heads_out,
    lambda a: a.reshape(-1, a.shape[2]).T,
  ),
  "joined": Layout(lambda s: (math.prod(s),), _joined, np.ravel),
}
