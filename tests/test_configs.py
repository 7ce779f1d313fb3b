"""Every file in configs/: it builds, its sizes chain, its nets are as large.

By jax.eval_shape alone: nothing is computed and no weights exist.
"""

import dataclasses
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from imagen_jax import build
from imagen_jax.build.configs import load_module, read_config
from imagen_jax.nets.efficient_unet import SR256_BLOCKS, EfficientUNet
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.mesh import MeshShape
from imagen_jax.training.step import init_state, make_train_step
from imagen_jax.types import TextEmbedding

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
XXL = 4_762_310_656
# Parameters of the net and of the text encoder.
STAGES = {
  "shapes16": (4_874_755, 526_336),
  "shapes64": (3_449_763, 526_336),
  "shapes256": (1_626_459, 526_336),
  "own": (109_562_627, 109_628_544),
  "base_64": (2_263_427_075, XXL),
  "sr256": (583_579_011, XXL),
  "sr1024": (575_182_211, XXL),
}
SHIPPED = ("shapes16", "shapes64", "shapes256")  # their weights are
SIZES = {
  "300M": 320_462_595,
  "500M": 568_169_475,
  "1B": 886_319_363,
  "2B": 2_263_427_075,
}
# Layers, width, heads, width of the MLP, parameters.
T5 = {
  "small": (8, 512, 6, 1024, 35_332_800),
  "base": (12, 768, 12, 2048, 109_628_544),
  "large": (24, 1024, 16, 2816, 341_231_104),
  "xl": (24, 2048, 32, 5120, 1_223_527_424),
  "xxl": (24, 4096, 64, 10240, XXL),
}
# Without poolers and heads; of CLIP without the last layer and its norm.
OTHER_ENCODERS = {
  "bert": 109_482_240 - 590_592,
  "bert:base": 109_482_240 - 590_592,
  "bert:large": 335_141_888 - 1_049_600,
  "clip_l14": 123_060_480 - 7_087_872 - 1_536,
}
CASCADES = {
  "shapes": ("shapes16", "shapes64", "shapes256"),
  "imagen": ("base64", "sr256", "sr1024"),
  "imagen:fid": ("base64", "sr256"),
}
# With every argument that there is.
ALL = (
  *STAGES,
  *CASCADES,
  "own:shipped",
  "own:none",
  "imagen:looks",
  *(f"base_64:{size}" for size in SIZES),
  "deepfloyd_if",  # and test_deepfloyd_if_configs.py
  "deepfloyd_if_train",
  "t5_xxl",
  *(f"t5_xxl:{size}" for size in T5),
  *OTHER_ENCODERS,
)


def count(tree) -> int:
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def shape_of(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


def test_every_file_is_in_this_test():
  found = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
  assert found == {name.partition(":")[0] for name in ALL}


@pytest.mark.parametrize("name", ALL)
def test_the_header_tells_the_command(name):
  file = name.partition(":")[0]
  text = (FOLDER / f"{file}.py").read_text(encoding="utf-8")
  header = text.split('"""')[1]
  assert f"--config=configs/{file}.py" in header
  config = read_config(name)
  # As it is written into checkpoints and images.
  assert json.loads(config.to_json_best_effort())
  assert math.prod(build.mesh(config).sizes(256)) == 256


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("base_64:3B", "base_64.py:3B is no size, expected 300M, 500M, 1B, 2B"),
    (
      "t5_xxl:huge",
      "t5_xxl.py:huge is no size of T5, expected small, base, large, xl, xxl",
    ),
    ("bert:huge", "bert.py:huge is no size of BERT, expected base, large"),
    ("own:mine", "own.py:mine is unknown, expected t5, shipped or none"),
    ("imagen:nice", "imagen.py:nice is unknown, expected looks, fid"),
    (
      "deepfloyd_if:l,xl",
      "deepfloyd_if.py:l,xl is unknown, expected m, l or xl, then m or l, and "
      "sr1024 or nothing, such as xl,l",
    ),
    (
      "deepfloyd_if_train:if3,l",
      "deepfloyd_if_train.py:if3,l is unknown, expected sr1024, or if1 or if2 "
      "and a size, such as if1,xl",
    ),
  ],
)
def test_an_unknown_argument_is_refused(name, message):
  with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
    read_config(name)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_trains_and_samples(name):
  config = read_config(name)
  build.check_keys(config)
  stage, text = build.stage(config.stage), build.text(config.text)
  data, run = build.data(config.data), build.training(config.train)
  optimizer = build.optimizer(config.optimizer)
  shipped = name in SHIPPED
  old = name.replace("base_64", "base64")  # as it is called in cascades
  path = f"package://weights/{name}.safetensors" if shipped else f"runs/{old}"
  assert config.weights == path

  key = jax.eval_shape(lambda: jax.random.key(0))
  net = jax.eval_shape(lambda key: build.init_net(stage, text, key), key)
  encoder = text.shapes()
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
    stage, text.embedder, optimizer,
    decay=run.ema_decay, seed=run.seed, accumulate=run.accumulate,
  )  # fmt: skip
  state = jax.eval_shape(lambda p: init_state(p, optimizer), net)
  after, metrics = jax.eval_shape(step, state, encoder, examples)
  assert after == state
  assert metrics["loss"].shape == ()

  # Images come out at the stage's own size.
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
  config = read_config(name)
  cascade = build.cascade(config)
  assert cascade.names == CASCADES[name]
  sizes = [stage.size for stage in cascade.stages]
  assert [stage.lowres_size for stage in cascade.stages] == [None, *sizes[:-1]]
  for member, stage, sampling in zip(
    cascade.names, cascade.stages, cascade.samplings, strict=True
  ):
    alone = read_config(member)
    assert stage == build.stage(alone.stage)
    assert (sampling == build.sampling(alone.sampling)) == (
      name != "imagen:fid"
    )
    assert config[member].weights == alone.weights
    # What the stage learnt to read is what the cascade's encoder writes.
    assert build.text(alone.text) == build.text(config.text)


# --- The paper's.


def test_nets_are_the_papers():
  """The tables of App. F are the modules' defaults, and counted as such."""
  how = {"scan": False, "dtype": jnp.float32}  # and not what
  net = lambda name: build.stage(read_config(name).stage).net.clone(**how)
  base = UNet(pool_projected=True)  # whose default old checkpoints have
  assert net("base_64").clone(remat=()) == base
  last = dataclasses.replace(SR256_BLOCKS[-1], self_attention=False)
  third = (*SR256_BLOCKS[:-1], last)
  for name, blocks in (("sr256", SR256_BLOCKS), ("sr1024", third)):
    found = net(name)
    plain = [dataclasses.replace(b, remat="none") for b in found.blocks]
    assert found.clone(blocks=tuple(plain)) == EfficientUNet(blocks)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_the_base_stage(size):
  """Near what they are called, the part that reads the text counted in."""
  config = read_config(f"base_64:{size}")
  stage, text = build.stage(config.stage), build.text(config.text)
  key = jax.random.key(0)
  found = count(jax.eval_shape(lambda: build.init_net(stage, text, key)))
  assert found == SIZES[size]
  named = float(size.replace("M", "e6").replace("B", "e9"))
  assert 0.88 < found / named < 1.14
  assert size != "2B" or 2.26e9 < found < 2.27e9  # as App. F.1 is printed


def test_the_sweep_is_of_these_sizes():
  points = list(load_module("base_64").sweep())
  assert len(points) == len(SIZES)
  for size, point in zip(SIZES, points, strict=True):
    config = read_config("base_64")
    config.update_from_flattened_dict(point)
    build.check_keys(config)
    assert build.stage(config.stage) == build.stage(
      read_config(f"base_64:{size}").stage
    )
    assert build.training(config.train).steps == 400_000


@pytest.mark.parametrize("size", T5)
def test_sizes_of_t5(size):
  """By what a layer has: four projections, three of the MLP, two norms."""
  layers, width, heads, hidden, published = T5[size]
  layer = 4 * width * 64 * heads + 3 * width * hidden + 2 * width
  expected = 32_128 * width + layers * layer + 32 * heads + width
  text = build.text(read_config(f"t5_xxl:{size}").text)
  shapes = text.shapes()
  assert count(shapes) == expected == published
  assert size in text.weights
  # Frozen, so what is computed with in bfloat16 alone is kept in it.
  for path, leaf in jax.tree.leaves_with_path(shapes):
    half = path[-1].key in ("kernel", "embedding")
    assert leaf.dtype == (jnp.bfloat16 if half else jnp.float32), path


@pytest.mark.parametrize("name", OTHER_ENCODERS)
def test_other_encoders_have_their_published_sizes(name):
  text = build.text(read_config(name).text)
  assert count(text.shapes()) == OTHER_ENCODERS[name]
  assert text.length <= text.encoder.max_length


def test_the_default_sizes_are_the_papers():
  for name, size in (("base_64", "2B"), ("t5_xxl", "xxl"), ("imagen", "looks")):
    assert read_config(name) == read_config(f"{name}:{size}")


def test_the_meshes_divide_the_batches():
  """On the paper's 256 and 128 chips (Sec. 4.1); T5 by tensor."""
  for name, chips in (("base_64", 256), ("sr256", 128), ("sr1024", 128)):
    config = read_config(name)
    data, fsdp, tensor = build.mesh(config).sizes(chips)
    assert data * fsdp == chips and tensor == 1 and fsdp > 1
    parts = chips * build.training(config.train).accumulate
    batch = build.data(config.data).batch_size
    assert batch == 2048 and batch % parts == 0
  assert build.mesh(read_config("t5_xxl")) == MeshShape(data=1, tensor=-1)
  assert build.mesh(read_config("imagen")) == MeshShape(data=-1)


def test_the_samplings_of_imagen():
  """App. D.2 and Table 1: (guidance, augmentation) of every stage."""
  told = lambda name: [
    (sampling.guidance, sampling.aug_level)
    for sampling in build.cascade(read_config(name)).samplings
  ]
  assert told("imagen:looks") == [(5.0, 0.0), (5.0, 0.2), (5.0, 0.2)]
  assert told("imagen:fid") == [(1.35, 0.0), (8.0, 0.0)]
