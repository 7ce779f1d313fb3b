"""Where what an optimizer keeps of a parameter lies: with the parameter.

By shapes alone; the mesh is of 8 fake devices.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement, like_param
from imagen_jax.training import optimizers
from imagen_jax.training.step import init_state, place_state


def on(data=1, fsdp=1, tensor=1):
  return make_mesh(MeshShape(data, fsdp, tensor))


def shape(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


PARAMS = {
  "block/conv_0": {"kernel": shape(3, 3, 128, 256), "bias": shape(256)},
  "block/wi_0": {"kernel": shape(256, 131)},
  "small": {"kernel": shape(6, 8)},
}
AXES = {
  "block/conv_0": {"kernel": P(None, None, "fsdp", "tensor"), "bias": P()},
  "block/wi_0": {"kernel": P("fsdp")},
  "small": {"kernel": P("fsdp")},
}


def placed(optimizer):
  """(state, the partitions of it) on the mesh (2, 2, 2)."""
  state = jax.eval_shape(lambda net: init_state(net, optimizer), PARAMS)
  places = place_state(state, optimizer, Placement(on(2, 2, 2)))
  return state, jax.tree.map(lambda sharding: trimmed(sharding.spec), places)


def trimmed(spec):
  """Without the None at its end, which mean nothing."""
  axes = list(spec)
  while axes and axes[-1] is None:
    axes.pop()
  return P(*axes)


def test_adams_moments_lie_with_their_parameter():
  optimizer = optimizers.Adam(clip_norm=1.0)
  state, places = placed(optimizer)
  assert places.params == places.ema == AXES
  assert places.step == P()
  moments = optax.tree.get(places.opt_state, "mu")
  assert moments == optax.tree.get(places.opt_state, "nu") == AXES
  assert jax.tree.structure(state) == jax.tree.structure(places)


def test_adafactors_moments_lie_with_what_is_left_of_theirs():
  """Of a factored one the rows and the columns; else the whole of it."""
  _, places = placed(optimizers.Adafactor())
  rows, columns, others = (
    optax.tree.get(places.opt_state, name) for name in ("v_row", "v_col", "v")
  )
  conv, dense = "block/conv_0", "block/wi_0"
  # The one is without the largest dimension, the other without the next.
  assert rows[conv]["kernel"] == P(None, None, "fsdp")
  assert columns[conv]["kernel"] == P(None, None, "tensor")
  assert rows[dense]["kernel"] == P()
  assert columns[dense]["kernel"] == P("fsdp")
  assert others[dense]["kernel"] == others[conv]["kernel"] == P()
  assert others["small"]["kernel"] == P("fsdp")
  assert rows["small"]["kernel"] == columns["small"]["kernel"] == P()
  assert places.params == AXES


@pytest.mark.parametrize(
  ("sizes", "of", "expected"),
  [
    ((128, 256), (128, 256), P("tensor", "fsdp")),
    ((128,), (128, 256), P("tensor")),
    ((256,), (128, 256), P("fsdp")),
    ((1,), (128, 256), P()),
    ((), (128, 256), P()),
    ((128, 256, 1), (128, 256), P()),
    ((3, 256), (3, 256, 256), P("tensor", "fsdp")),  # the last one is gone
  ],
)
def test_like_param(sizes, of, expected):
  place = jax.sharding.NamedSharding(on(2, 2, 2), P("tensor", "fsdp"))
  found = like_param(shape(*sizes), shape(*of), place)
  assert found.mesh == place.mesh and trimmed(found.spec) == expected
