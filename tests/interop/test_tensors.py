"""Tensors read into place: what is read, and the errors of misfits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from imagen_jax.interop.tensors import Tensor, check, place
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement

KERNEL = np.arange(96.0, dtype=np.float32).reshape(8, 12) / 7


def tensor_of(value, reads):
  def read(index):
    reads.append(value[index])
    return reads[-1]

  return Tensor(value.shape, value.dtype, read)


def shape(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize(
  ("mesh", "spec", "parts"),
  [
    (MeshShape(data=8), P(), 1),
    (MeshShape(data=2, fsdp=4), P("fsdp"), 4),
    (MeshShape(data=1, fsdp=2, tensor=4), P("fsdp", "tensor"), 8),
  ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_each_part_is_read_once_and_goes_to_its_devices(
  mesh, spec, parts, turned
):
  reads = []
  stored = tensor_of(KERNEL.T if turned else KERNEL, reads)
  like = {"mlp": {"wi_0": {"kernel": shape(8, 12)}}}
  placement = Placement(make_mesh(mesh))
  found = {"mlp/wi_0/kernel": stored.T if turned else stored}
  kernel = place(found, like, placement)["mlp"]["wi_0"]["kernel"]
  np.testing.assert_array_equal(kernel, KERNEL)
  assert kernel.sharding.spec == spec
  assert [read.size for read in reads] == [96 // parts] * parts


def test_without_a_placement_they_are_whole_and_not_committed():
  """As jax.device_put leaves them: free to go where they are used."""
  kernel = place({"kernel": tensor_of(KERNEL, [])}, {"kernel": shape(8, 12)})
  assert kernel["kernel"].devices() == {jax.devices()[0]}
  assert not kernel["kernel"].committed


@pytest.mark.parametrize("stored", [np.float16, jnp.bfloat16, np.float64])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_numbers_are_rounded_to_the_wanted_dtype(stored, wanted):
  value = KERNEL.astype(stored)
  like = {"kernel": shape(8, 12, dtype=wanted)}
  kernel = place({"kernel": tensor_of(value, [])}, like)["kernel"]
  assert kernel.dtype == wanted
  np.testing.assert_array_equal(kernel, value.astype(wanted))


def test_all_misfits_are_named_at_once():
  found = {f"new_{i}": tensor_of(KERNEL, []) for i in range(7)}
  found |= {
    "turned": tensor_of(KERNEL, []),
    "scaled": Tensor((2,), "F8_E4M3", None),
    "whole": Tensor((2,), np.dtype("int8"), None),
    "short": Tensor((2,), np.dtype(jnp.float8_e5m2), None),
    "right": tensor_of(KERNEL, []),
  }
  wanted = {"turned": (12, 8), "gone": (1,), "scaled": (2,)}
  wanted |= {"whole": (2,), "short": (2,)}
  floats = "(expected floats of 16 bits or more, 2)"
  with pytest.raises(ValueError) as caught:
    check("file", found, wanted | {"right": (8, 12)})
  assert str(caught.value) == (
    "weights file are not those of the config's net: they lack gone; they "
    "have the unknown new_0, new_1, new_2, new_3 and 3 more; they have turned "
    f"as float32[8,12] (expected 12,8), scaled as F8_E4M3[2] {floats}, "
    f"whole as int8[2] {floats}, short as float8_e5m2[2] {floats}"
  )
  check("file", {"right": found["right"]}, {"right": (8, 12)})
