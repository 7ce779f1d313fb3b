"""Weights of Inception v3, as FID is defined by them.

They are of the graph of 2015-12-05, `classify_image_graph_def.pb`: a protobuf
message, which is data. Files of other tools are pickles of the same weights.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_jax import files
from imagen_jax.interop.tensors import Index, Tensor, check, place
from imagen_jax.interop.weights import check_no_pickle, load_weights
from imagen_jax.nets.inception import InceptionV3

_SIZE = 75  # pixels, the smallest image that every layer can take
_FLOAT = 1  # DT_FLOAT of TensorFlow's DataType


def params_like() -> Any:
  """Returns the shapes of InceptionV3's parameters."""
  image = jnp.zeros((1, _SIZE, _SIZE, 3))
  init = lambda: InceptionV3().init(jax.random.key(0), image)["params"]
  return jax.eval_shape(init)


def load(path: str | os.PathLike) -> Any:
  """Loads InceptionV3's parameters.

  Args:
    path: the .pb graph, or safetensors whose tensors have its nodes' names.

  Raises:
    ValueError: the file is a pickle, cannot be read, is damaged, or has not the
      tensors of the graph. The sentence names it.
  """
  check_no_pickle(path)
  like = params_like()
  if epath.Path(path).suffix == ".safetensors":
    return load_weights(path, like)
  shapes = {
    name: leaf.shape
    for name, leaf in flax.traverse_util.flatten_dict(like, sep="/").items()
  }
  found = _constants(path, shapes)
  check(path, found, shapes)
  return place(found, like)


def _constants(
  path: str | os.PathLike, wanted: dict[str, Sequence[int]]
) -> dict[str, Tensor]:
  """Reads the graph's constants of the wanted names.

  Raises:
    ValueError: the file cannot be read, or is no graph.
  """
  # Imported here, as they are of the extra `train`. Errors name tensorboard's.
  from tensorboard.compat.proto.graph_pb2 import GraphDef  # isort: skip
  from google.protobuf.message import DecodeError

  try:
    data = epath.Path(path).read_bytes()
  except OSError as error:
    raise ValueError(
      f"weights {path} cannot be read: {files.reason(error)}"
    ) from error
  try:
    graph = GraphDef.FromString(data)
  except DecodeError as error:
    raise ValueError(
      f"weights {path} are damaged or no graph of TensorFlow, expected"
      " classify_image_graph_def.pb or safetensors"
    ) from error
  nodes = {node.name: node for node in graph.node if node.op == "Const"}
  return {
    name: _tensor(path, name, nodes[name].attr["value"].tensor)
    for name in wanted
    if name in nodes
  }


def _tensor(path: str | os.PathLike, name: str, proto: Any) -> Tensor:
  """Describes a constant, of which all is read when its shape was checked."""
  shape = tuple(axis.size for axis in proto.tensor_shape.dim)
  dtype = np.dtype(np.float32) if proto.dtype == _FLOAT else "no float32"

  def read(index: Index) -> np.ndarray:
    count = math.prod(shape)
    content = proto.tensor_content
    if len(content) % 4:
      raise ValueError(
        f"weights {path} are damaged: {name} has {len(content)} bytes,"
        f" expected {4 * count}"
      )
    values = np.array(proto.float_val, np.float32)
    if content:
      values = np.frombuffer(content, "<f4")
    elif values.size == 1:  # TensorFlow stores equal values once
      values = np.full(count, values[0])
    if values.size != count:
      raise ValueError(
        f"weights {path} are damaged: {name} has {values.size} values,"
        f" expected {count}"
      )
    return values.reshape(shape)[index]

  return Tensor(shape, dtype, read)
