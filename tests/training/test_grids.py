"""Sample grids of a training run, on one device and on many."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from imagen_jax.diffusion.gaussian import X
from imagen_jax.diffusion.samplers import DDIM
from imagen_jax.nets.conditioning import with_lowres
from imagen_jax.nets.layers import pin_batch
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement
from imagen_jax.stage import Sampling, Stage
from imagen_jax.training import grids
from imagen_jax.types import Conditioning, TextEmbedding

COUNT = 3  # examples, which 8 devices do not divide


class Net(nn.Module):
  """A net of one convolution that reads its text."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    h = nn.Conv(3, (3, 3), name="conv")(with_lowres(z, cond.lowres))
    return pin_batch(h) + cond.text.tokens.mean((1, 2))[:, None, None, None]


STAGE = Stage(Net(), size=8, lowres_size=4, prediction=X)


@pytest.fixture
def example():
  """A batch, and the embeddings of its captions."""
  rng = np.random.default_rng(1)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  image = lambda side: np.clip(0.5 * normal(COUNT, side, side, 3), -1, 1)
  text = TextEmbedding(normal(COUNT, 3, 8), np.ones((COUNT, 3), bool))
  return {"image": image(8), "lowres": image(4)}, text


@pytest.mark.parametrize("shape", [(-1, 1, 1), (2, 2, 2)])
def test_rows_fill_all_devices_and_show_the_same(
  example, shape, random_params, monkeypatch
):
  """Few images would else be computed whole by every device."""
  batch, text = example
  cond = Conditioning(text, batch["lowres"], np.zeros(COUNT))
  params = random_params(Net(), batch["image"], np.zeros(COUNT), cond)
  sampling = Sampling(steps=2, guidance=2.0, step=DDIM())
  run, carried = grids.run_stage, []

  def note(*args, **settings):
    found = run(*args, **settings)
    carried.extend([args[5].lowres, args[5].text.tokens, found.z])
    return found

  monkeypatch.setattr(grids, "run_stage", note)

  def show(devices):
    with jax.set_mesh(devices):
      placed = Placement(devices).put(params)
      return grids.sample_grid(STAGE, sampling, placed, text, batch)

  one = show(make_mesh(devices=jax.devices()[:1]))
  assert {x.sharding.shard_shape(x.shape)[0] for x in carried} == {COUNT}
  carried.clear()
  devices = make_mesh(MeshShape(*shape))
  many = show(devices)
  assert {x.sharding.shard_shape(x.shape)[0] for x in carried} == {1}
  np.testing.assert_array_equal(one, many)
  assert np.std(one) > 10
