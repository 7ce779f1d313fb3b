"""The loss on held-out images: its value, and when it is measured."""

import contextlib
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import Unconditional
from imagen_jax.training.held_out import read_held_out
from imagen_jax.training.outputs import Outputs
from imagen_jax.training.settings import Training
from imagen_jax.training.step import LOGSNR_EDGES

SIDE, BATCH = 4, 16


class Net(nn.Module):
  """A net of one layer that reads its time."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    return nn.Dense(3)(z) + time[:, None, None, None] / 1000


STAGE = Stage(Net(), SIDE)


def make(shape, training, seen=None):
  """The held-out loss of random images, and random weights on a mesh."""
  devices = make_mesh(MeshShape(*shape))
  key = jax.random.key(1)
  params = STAGE.init(key, text_length=None, text_dim=None)
  params = jax.device_put(params, Placement(devices).params(params))

  def first_batches(split, size, count, rows):
    if seen is not None:
      seen.append((split, size, count, [*rows]))
    rng = np.random.default_rng(2)
    image = rng.uniform(-1, 1, (count, size, SIDE, SIDE, 3))
    return [{"image": one} for one in image.astype(np.float32)]

  run = types.SimpleNamespace(
    stage=STAGE,
    text=types.SimpleNamespace(embedder=Unconditional()),
    data=types.SimpleNamespace(batch_size=BATCH),
    training=training,
  )
  job = types.SimpleNamespace(
    run=run,
    setup=types.SimpleNamespace(devices=devices),
    text_params={},
    first_batches=first_batches,
  )
  return read_held_out(job), params, devices


def test_it_is_the_mean_loss_by_logsnr_of_fixed_draws():
  training = Training(validate_every=5, validate_batches=2)
  seen = []
  held_out, params, devices = make((-1, 1, 1), training, seen)
  assert seen == [(("validation", "test"), BATCH, 2, [*range(BATCH)])]
  with jax.set_mesh(devices):
    held_out = held_out.compile(params)
    found = held_out.losses(params)
    assert held_out.losses(params) == found  # the same draws again
  losses, logsnrs = [], []
  compute = jax.jit(STAGE.loss)
  for i, batch in enumerate(held_out.batches):
    key = jax.random.fold_in(jax.random.key(0), i)
    params = jax.device_get(params)
    loss = compute(params, STAGE.draw(key, BATCH), batch["image"], None)
    losses.append(loss[0])
    logsnrs.append(loss[1])
  losses, logsnrs = np.concatenate(losses), np.concatenate(logsnrs)
  np.testing.assert_allclose(found.pop("validation_loss"), losses.mean(), 1e-5)
  buckets = np.digitize(logsnrs, LOGSNR_EDGES)
  means = [losses[buckets == i].mean() for i in np.unique(buckets)]
  assert [name.split("/")[0] for name in found] == (
    ["validation_loss_logsnr"] * len(means)
  )
  np.testing.assert_allclose([*found.values()], means, rtol=1e-5)


def test_the_mesh_does_not_matter_and_parts_bound_the_memory():
  results = []
  for shape in ((-1, 1, 1), (2, 4, 1)):
    training = Training(validate_every=1, validate_batches=1, accumulate=2)
    seen = []
    held_out, params, devices = make(shape, training, seen)
    assert [row[1:3] for row in seen] == [(BATCH // 2, 2)]
    with jax.set_mesh(devices):
      results.append(held_out.losses(params))
  assert results[0].keys() == results[1].keys()
  for name, value in results[0].items():
    np.testing.assert_allclose(results[1][name], value, rtol=1e-5)


def test_without_validate_every_nothing_is_read():
  seen = []
  assert make((-1, 1, 1), Training(), seen)[0] is None and seen == []


@pytest.mark.parametrize(
  ("split", "splits"),
  [(None, ("validation", "test")), ("train[:9]", ("train[:9]",))],
)
def test_which_split_is_held_out(split, splits):
  assert Training(validate_split=split).validate_splits == splits


@pytest.mark.parametrize("name", ["validate_every", "validate_batches"])
def test_counts_are_at_least_one(name):
  with pytest.raises(ValueError, match=f"^{name} is 0, expected at least 1"):
    Training(**{name: 0})


def test_it_is_logged_with_the_metrics_of_its_step():
  """Every third step and the last one, whatever log_every is."""
  training = Training(
    steps=8, log_every=4, validate_every=3, checkpoint_every=100,
    sample_every=None,
  )  # fmt: skip
  part = lambda name: contextlib.nullcontext()
  written, said = {}, []
  outputs = Outputs(
    types.SimpleNamespace(
      run=types.SimpleNamespace(training=training),
      progress=types.SimpleNamespace(
        pause=lambda: None, resume=lambda: None, log=said.append
      ),
    ),
    types.SimpleNamespace(check=lambda step: None),
    types.SimpleNamespace(
      clock=types.SimpleNamespace(part=part),
      goodput=types.SimpleNamespace(part=part),
      write=lambda step, found: written.update({step: found}),
    ),
    types.SimpleNamespace(end=lambda *args: None),
    types.SimpleNamespace(save=lambda *args: None),
    {},
    None,
    types.SimpleNamespace(paused=contextlib.nullcontext),
    types.SimpleNamespace(losses=lambda ema: {"validation_loss": float(ema)}),
  )
  for step in range(1, 9):
    state = types.SimpleNamespace(ema=jnp.float32(step))
    outputs.write(step, state, last=step == 8)
  loss = lambda step: {"validation_loss": float(step)}
  assert written == {3: loss(3), 4: {}, 6: loss(6), 8: loss(8)}
  assert said[0] == "step 3: loss 3.0000 on held-out images"
