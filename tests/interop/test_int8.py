"""T5 read into bytes: every layout, whole or in parts, tensor by tensor."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from imagen_jax import build
from imagen_jax.interop import t5
from imagen_jax.interop.tensors import Tensor, place, quantised
from imagen_jax.nets.int8 import quantise
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement


@pytest.fixture(params=["t5x", "hugging face"])
def folder(request, tmp_path, params):
  save = {"t5x": t5.save_t5x, "hugging face": t5.save_hugging_face}
  save[request.param](tmp_path / "t5", params)
  return tmp_path / "t5"


@pytest.fixture
def expected(flat):
  """The flat tree of it."""
  result = {}
  for name, value in flat.items():
    if name.endswith("/kernel"):
      result[name], result[name + "_scale"] = quantise(value)
    else:
      result[name] = value
  return result


@pytest.mark.parametrize("mesh", [None, MeshShape(1, 2, 4), MeshShape(1, 8, 1)])
def test_kernels_are_rounded_as_a_whole(folder, text, expected, mesh):
  """Whatever part of one goes to which device."""
  config = text(folder, int8=True)
  placement = mesh and Placement(make_mesh(mesh))
  loaded = build.load_text(config, placement)
  found = flax.traverse_util.flatten_dict(loaded, sep="/")
  assert found.keys() == expected.keys()
  for name, value in found.items():
    assert value.dtype == expected[name].dtype, name
    np.testing.assert_array_equal(value, expected[name])
  if mesh == MeshShape(1, 2, 4):
    wo = loaded["encoder"]["layers_0"]["mlp"]["wo"]
    assert wo["kernel"].sharding.spec == P("tensor", "fsdp")
    assert wo["kernel_scale"].sharding.spec == P()


def test_misfits_are_still_named(folder, text):
  like = text(int8=True).shapes()
  del like["encoder"]["layers_1"]["mlp"]["wo"]
  with pytest.raises(ValueError, match="they have the unknown enc[^,]*$"):
    t5.load(folder, like)


def test_nothing_is_read_before_it_is_placed_nor_kept():
  """So that no more than one kernel is there as floats."""
  reads = []

  def tensor(name):
    def read(index):
      reads.append(name)
      return np.ones((6, 4))[index]

    return Tensor((6, 4), np.dtype("float32"), read)

  names = ("a/kernel", "b/kernel", "c/kernel")
  like = {}
  for name in names:
    kernel = jax.ShapeDtypeStruct((6, 4), jnp.int8)
    scale = jax.ShapeDtypeStruct((4,), jnp.float32)
    like[name[0]] = {"kernel": kernel, "kernel_scale": scale}
  found = quantised({name: tensor(name) for name in names}, like)
  assert reads == []
  place(found, like)
  assert reads == [name for name in names for _ in range(2)]
