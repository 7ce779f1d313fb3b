"""A run on a mesh: its functions make what its shapes and places describe."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.stage import Sampling, Stage
from imagen_jax.text.settings import Text
from imagen_jax.training.optimizers import Adafactor
from imagen_jax.training.settings import Data, Training
from imagen_jax.training.setup import Run, set_up


class Small(nn.Module):
  """A net that compiles fast, of pixels and text."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    text = nn.Dense(8, name="text")(cond.text.tokens.mean(1))
    pixels = nn.Dense(8, name="in")(z) + text[:, None, None, :]
    return nn.Dense(3, name="out")(pixels * time[:, None, None, None])


RUN = Run(
  stage=Stage(Small(), 8, lowres_size=4, crop_size=4),
  text=Text(T5Encoder(16, 8, 2, 1, 4, 8), "vocabulary", "weights", length=4),
  data=Data(batch_size=16),
  training=Training(accumulate=2),
  sampling=Sampling(),
  optimizer=Adafactor(clip_norm=1.0),
  mesh=MeshShape(2, 2, 2),
)


@pytest.fixture(scope="module")
def setup():
  return set_up(RUN, make_mesh(RUN.mesh))


def check_like(tree, like):
  """Shapes, dtypes and places are what they should be."""
  assert jax.tree.structure(tree) == jax.tree.structure(like)
  for one, other in zip(
    jax.tree.leaves(tree), jax.tree.leaves(like), strict=True
  ):
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def test_the_first_state_is_where_its_shapes_are(setup):
  with jax.set_mesh(setup.devices):
    state = setup.initialise()
    check_like(state, setup.state)
    kept = jax.device_get(state.params)
    given = jax.tree.map(np.ones_like, kept)
    other = setup.start_from(setup.placement.put(given))
  check_like(other, setup.state)
  parts = state.params["in"]["kernel"].sharding.shard_shape((3, 8))
  assert parts == (3, 4)  # along fsdp
  jax.tree.map(np.testing.assert_array_equal, state.ema, kept)
  assert {float(x.min()) for x in jax.tree.leaves(other.ema)} == {1.0}


def test_a_step_keeps_the_state_in_its_places(setup):
  after, metrics = jax.eval_shape(
    setup.step, setup.state, setup.text, setup.batch
  )
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes(setup.state)
  assert metrics["loss"].shape == ()
  places, everywhere = setup.outputs
  assert places == setup.places and everywhere.is_fully_replicated


def test_a_batch_is_of_crops_and_spread_by_rows(setup):
  shapes = {name: leaf.shape for name, leaf in setup.batch.items()}
  assert shapes == {
    "image": (16, 4, 4, 3), "lowres": (16, 2, 2, 3),
    "tokens": (16, 4), "mask": (16, 4),
  }  # fmt: skip
  for leaf in setup.batch.values():
    assert leaf.sharding == setup.rows
    assert leaf.sharding.shard_shape(leaf.shape)[0] == 4


def test_what_does_not_fit_is_refused():
  odd = dataclasses.replace(RUN, data=Data(batch_size=12))
  with pytest.raises(ValueError, match="^batch_size is 12, .* accumulate 2$"):
    set_up(odd, make_mesh(RUN.mesh))
  stage = dataclasses.replace(RUN.stage, max_aug_level=0.3)
  with pytest.raises(ValueError, match="^sampling has aug_level 0.5, expected"):
    dataclasses.replace(RUN, stage=stage, sampling=Sampling(aug_level=0.5))
