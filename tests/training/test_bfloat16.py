"""A run in bfloat16 beside one in float32: shapes16, the same draws."""

import itertools

import jax
import numpy as np
import pytest

from imagen_jax import build
from imagen_jax.configs import shapes16
from imagen_jax.data.pipeline import make_batches
from imagen_jax.shapes import captioned_shapes_dataset_builder
from imagen_jax.training.step import init_state, make_train_step

STEPS = 100


@pytest.fixture(scope="module")
def batches():
  """The first batches of shapes16, from as many images as they hold."""
  config = shapes16.get_config()
  count = STEPS * config.data.batch_size // 4  # four epochs
  drawn = (
    captioned_shapes_dataset_builder.example("train", i) for i in range(count)
  )
  source = [record | {"image": record["image"].read()} for record in drawn]
  batches = make_batches(
    source,
    size=config.stage.size,
    tokenize=build.tokenizer(build.text(config.text)),
    global_batch=config.data.batch_size,
    seed=0,
    cache=True,
  )
  return list(itertools.islice(batches, STEPS))


def losses(batches, dtype: str) -> np.ndarray:
  """The loss of every step of a run of shapes16."""
  config = shapes16.get_config()
  config.stage.net.dtype = dtype
  stage, text = build.stage(config.stage), build.text(config.text)
  optimizer = build.optimizer(config.optimizer)
  key = jax.random.key(0)
  state = jax.jit(
    lambda: init_state(build.init_net(stage, text, key), optimizer)
  )()
  step = jax.jit(
    make_train_step(stage, text.embedder, optimizer, decay=0.999, seed=0)
  )
  weights, found = build.load_text(text), []
  for batch in batches:
    state, metrics = step(state, weights, batch)
    found.append(float(metrics["loss"]))
  return np.array(found)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(batches):
  """Within 1 % over all steps; of the last ten it was 4 % when measured."""
  low, full = (losses(batches, name) for name in ("bfloat16", "float32"))
  assert full[-10:].mean() < 0.6 * full[:10].mean()  # it does learn
  np.testing.assert_allclose(low.mean(), full.mean(), rtol=0.01)
  np.testing.assert_allclose(low[-10:].mean(), full[-10:].mean(), rtol=0.1)
  assert np.abs(low - full).max() > 1e-6  # they are not the same run
