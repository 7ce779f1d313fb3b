"""Inception v3 of a graph like that of 2015-12-05, and bad graphs.

The features are torch-fidelity's (tests/oracles/make_inception_fixture.py).
"""

import pathlib
import pickle
import runpy

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
from tensorboard.compat.proto.graph_pb2 import GraphDef

from imagen_jax.evals.features import resize_tf1
from imagen_jax.interop import inception
from imagen_jax.interop.weights import save_weights
from imagen_jax.nets.inception import InceptionV3

ORACLES = pathlib.Path(__file__).parents[1] / "oracles"
SCRIPT = runpy.run_path(str(ORACLES / "make_inception_fixture.py"))
NAME = "mixed_3/tower/conv_2/conv2d_params"


def graph(constants):
  """A graph of {name: array}; a number is stored as one value for all."""
  message = GraphDef()
  message.node.add(name="DecodeJpeg/contents", op="Placeholder")
  for name, (shape, value) in constants.items():
    node = message.node.add(name=name, op="Const")
    node.attr["dtype"].type = 1
    tensor = node.attr["value"].tensor
    tensor.dtype = 1
    for side in shape:
      tensor.tensor_shape.dim.add(size=side)
    if isinstance(value, np.ndarray):
      tensor.tensor_content = value.tobytes()
    else:
      tensor.float_val.append(value)
  return message


@pytest.fixture(scope="module")
def shapes():
  return SCRIPT["shapes"]()


@pytest.fixture(scope="module")
def loaded(shapes, tmp_path_factory):
  """The random weights, read from a graph of 96 MB."""
  path = tmp_path_factory.mktemp("inception") / "classify_image_graph_def.pb"
  weight = SCRIPT["weight"]
  constants = {name: (s, weight(name, s)) for name, s in shapes.items()}
  constants["ResizeBilinear/size"] = ((2,), np.array([299, 299], np.int32))
  path.write_bytes(graph(constants).SerializeToString())
  params = inception.load(path)
  path.unlink()
  return params


def test_all_taps_are_torch_fidelitys(loaded):
  x = resize_tf1(SCRIPT["make_images"](), SCRIPT["SIZE"])
  apply = jax.jit(lambda p, x: InceptionV3().apply({"params": p}, x))
  taps = apply(loaded, (x - 128) / 128)
  expected = safetensors.numpy.load_file(SCRIPT["PATH"])
  assert taps.keys() == expected.keys()
  for tap, value in expected.items():
    assert np.abs(value).max() > 0.1  # the comparison is of something
    error = np.abs(taps[tap] - value).max() / np.abs(value).max()
    assert error < 1e-5, (tap, error)


def test_safetensors_give_the_same_weights(loaded, tmp_path):
  path = tmp_path / "inception.safetensors"
  save_weights(path, loaded, dtype=None)
  jax.tree.map(np.testing.assert_array_equal, inception.load(path), loaded)
  path.unlink()


def test_equal_values_may_be_stored_once(shapes, tmp_path):
  path = tmp_path / "a.pb"
  constants = {name: (shape, 0.25) for name, shape in shapes.items()}
  path.write_bytes(graph(constants).SerializeToString())
  found = flax.traverse_util.flatten_dict(inception.load(path), sep="/")
  assert {k: v.shape for k, v in found.items()} == shapes
  assert all(np.all(np.asarray(v) == 0.25) for v in found.values())


def break_dtype(message):
  node = next(node for node in message.node if node.name == NAME)
  node.attr["value"].tensor.dtype = 2


def break_size(message):
  node = next(node for node in message.node if node.name == NAME)
  node.attr["value"].tensor.tensor_content = b"0123"


def break_length(message):
  node = next(node for node in message.node if node.name == NAME)
  node.attr["value"].tensor.tensor_content = b"01234"


def break_shape(message):
  node = next(node for node in message.node if node.name == NAME)
  node.attr["value"].tensor.tensor_shape.dim[0].size = 1 << 60


def drop(message):
  kept = [node for node in message.node if node.name != NAME]
  del message.node[:]
  message.node.extend(kept)


@pytest.mark.parametrize(
  ("damage", "expected"),
  [
    (drop, f"they lack {NAME}"),
    (break_shape, rf"they have {NAME} as float32\[1152921504606846976,3,96,96"),
    (break_dtype, rf"they have {NAME} as no float32"),
    (break_size, f"are damaged: {NAME} has 1 values, expected 82944"),
    (break_length, f"are damaged: {NAME} has 5 bytes, expected 331776"),
  ],
)
def test_bad_graphs(shapes, tmp_path, damage, expected):
  message = graph({name: (shape, 0.5) for name, shape in shapes.items()})
  damage(message)
  path = tmp_path / "a.pb"
  path.write_bytes(message.SerializeToString())
  with pytest.raises(ValueError, match=f"^weights {path} .*{expected}"):
    inception.load(path)


@pytest.mark.parametrize(
  ("name", "data", "expected"),
  [
    ("a.pb", None, "cannot be read: No such file"),
    ("a.pb", b"\x0a\xff\xff", "are damaged or no graph of TensorFlow"),
    ("a.pb", b"", "they lack .* and 468 more"),
    ("a.pb", pickle.dumps({"a": 1}), "are damaged or no graph|they lack"),
    ("a.pth", pickle.dumps({"a": 1}), "are a pickle, which can run anything"),
    ("a.safetensors", b"\x08", "are damaged or not safetensors"),
  ],
)
def test_bad_files(tmp_path, name, data, expected):
  path = tmp_path / name
  if data is not None:
    path.write_bytes(data)
  with pytest.raises(ValueError, match=f"^weights {path} .*{expected}"):
    inception.load(path)
