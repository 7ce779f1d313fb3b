"""Every file in configs/: it builds, its sizes chain, its nets are as large.

By jax.eval_shape alone: nothing is computed and no weights exist.
"""

import json
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest

from imagen_jax import build
from imagen_jax.training.step import init_state, make_train_step
from imagen_jax.types import TextEmbedding

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
# Parameters of the net and of the text encoder.
STAGES = {
  "shapes16": (4_874_755, 526_336),
  "shapes64": (3_449_763, 526_336),
  "shapes256": (1_626_459, 526_336),
}
CASCADES = {"shapes": ("shapes16", "shapes64", "shapes256")}


def get_config(name: str):
  return runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"]()


def count(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shape_of(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def test_every_file_is_in_this_test():
  found = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
  assert found == {*STAGES, *CASCADES}


@pytest.mark.parametrize("name", [*STAGES, *CASCADES])
def test_the_header_tells_the_command(name):
  text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
  header = text.split('"""')[1]
  assert f"--config=configs/{name}.py" in header
  # As it is written into checkpoints and pictures.
  assert json.loads(get_config(name).to_json_best_effort())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_trains_and_samples(name):
  config = get_config(name)
  build.check_keys(config)
  stage, text = build.stage(config.stage), build.text(config.text)
  data, run = build.data(config.data), build.training(config.train)
  optimizer = build.optimizer(config.optimizer)
  assert config.weights == f"weights/{name}.safetensors"

  key = jax.eval_shape(lambda: jax.random.key(0))
  net = jax.eval_shape(lambda key: build.init_net(stage, text, key), key)
  encoder = jax.eval_shape(lambda key: build.init_text(text, key), key)
  assert (count(net), count(encoder)) == STAGES[name]

  # A training step takes the state to another alike.
  size, batch = stage.train_size, data.batch_size
  ids = (batch, text.length)
  examples = {
    "image": shape_of(batch, size, size, 3),
    "tokens": shape_of(*ids, dtype=jnp.int32),
    "mask": shape_of(*ids, dtype=jnp.bool_),
  }
  if stage.lowres_size:
    small = size // stage.factor
    examples["lowres"] = shape_of(batch, small, small, 3)
  step = make_train_step(
    stage, text.encoder, optimizer, decay=run.ema_decay, seed=run.seed
  )
  state = jax.eval_shape(lambda p: init_state(p, optimizer), net)
  after, metrics = jax.eval_shape(step, state, encoder, examples)
  assert after == state
  assert metrics["loss"].shape == ()

  # Pictures come out at the stage's own size.
  n = 2
  words = TextEmbedding(
    shape_of(n, text.length, text.encoder.emb_dim),
    shape_of(n, text.length, dtype=jnp.bool_),
  )
  side = stage.lowres_size
  pictures = jax.eval_shape(
    lambda *args: stage.sample(*args, sampling=build.sampling(config.sampling)),
    net,
    jax.eval_shape(lambda key: jax.random.split(key, n), key),
    words,
    side and shape_of(n, side, side, 3),
  )
  assert pictures.shape == (n, stage.size, stage.size, 3)


@pytest.mark.parametrize("name", CASCADES)
def test_a_cascade_is_its_stages(name):
  config = get_config(name)
  cascade = build.cascade(config)
  assert cascade.names == CASCADES[name]
  sizes = [stage.size for stage in cascade.stages]
  assert [stage.lowres_size for stage in cascade.stages] == [None, *sizes[:-1]]
  for member, stage, sampling in zip(
    cascade.names, cascade.stages, cascade.samplings, strict=True
  ):
    alone = get_config(member)
    assert stage == build.stage(alone.stage)
    assert sampling == build.sampling(alone.sampling)
    assert config[member].weights == alone.weights
    # What the stage learnt to read is what the cascade's encoder writes.
    assert build.text(alone.text) == build.text(config.text)
