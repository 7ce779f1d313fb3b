"""Programs as compiled ahead: they are those that the verbs run.

On 8 fake devices, in tiny: what a verb makes and hands its step or sampler is
held against the shapes and places that the program names.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import imagen_jax
from imagen_jax import build, imagen
from imagen_jax.aot import programs
from imagen_jax.data.pipeline import make_batches
from imagen_jax.interop import weights
from imagen_jax.parallel import mesh
from imagen_jax.parallel.flops import count_flops
from imagen_jax.parallel.sharding import Placement
from imagen_jax.training.step import init_state, place_state

QUICK = {"xla_backend_optimization_level": 0}  # to compile
MESH = {"data": 2, "fsdp": 2, "tensor": 2}
NET = {
  "embed_dim": 8,
  "feature_pooling_type": "mean",
  "text_width": 8,
  "norm_groups": 4,
}
BASE = NET | {
  "kind": "UNet",
  "image_size": 8,
  "channel_mult": (1,),
  "num_res_blocks": 1,
  "attn_resolutions": (8,),
  "text_cross_attn_res": (8,),
  "per_head_channels": 8,
}
BLOCK = {
  "channels": 8,
  "strides": None,
  "num_res_blocks": 1,
  "text_cross_attention": True,
  "num_attention_heads": 2,
}
LARGER = NET | {"kind": "EfficientUNet", "blocks": (BLOCK,), "scan": True}
TEXT = {
  "encoder": {
    "vocab_size": 512,
    "emb_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 2,
    "head_dim": 8,
    "mlp_dim": 16,
    "dtype": "bfloat16",
  },
  "vocabulary": "weights/shapes.model",
  "length": 16,
}
# The second stage trains on crops, 8 of 16 wide, made from 4 of 8.
STAGES = {
  "base": {"size": 8, "net": BASE, "prediction": "x"},
  "larger": {"size": 16, "lowres_size": 8, "crop_size": 8, "net": LARGER},
}


def train_config(here, batch_size=8, **train):
  return ConfigDict(
    {
      "text": TEXT | {"weights": f"{here}/text.safetensors"},
      "stage": STAGES["larger"],
      "data": {"batch_size": batch_size},
      "optimizer": {"kind": "adafactor"},
      "train": {"steps": 10, **train},
      "sampling": {},
      "weights": "",
      "mesh": MESH,
    }
  )


def cascade_config(here):
  stage = lambda name: {
    "stage": STAGES[name],
    "sampling": {"steps": 2},
    "weights": f"{here}/{name}.safetensors",
  }
  return ConfigDict(
    {
      "stages": tuple(STAGES),
      **{name: stage(name) for name in STAGES},
      "text": TEXT | {"weights": f"{here}/text.safetensors"},
      "batch_size": 4,
      "mesh": MESH,
    }
  )


def devices_of(config):
  return mesh.make_mesh(build.mesh(config))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
  """A folder with the weights of the text encoder and of both stages."""
  here = tmp_path_factory.mktemp("programs")
  config, key = cascade_config(here), jax.random.key(0)
  text = build.text(config.text)
  trees = {"text": lambda: text.init(key)}
  for name in STAGES:
    stage = build.stage(config[name].stage)
    trees[name] = lambda stage=stage: build.init_net(stage, text, key)
  for name, make in trees.items():
    like = jax.eval_shape(make)
    tree = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1), like)
    weights.save_weights(here / f"{name}.safetensors", tree)
  return here


def assert_alike(arrays, told):
  """The shape, dtype and place of every array are those of the program."""
  assert jax.tree.structure(arrays) == jax.tree.structure(told)
  for (path, array), like in zip(
    jax.tree.leaves_with_path(arrays), jax.tree.leaves(told), strict=True
  ):
    where = jax.tree_util.keystr(path)
    assert (array.shape, array.dtype) == (like.shape, like.dtype), where
    assert array.sharding.is_equivalent_to(like.sharding, array.ndim), where


# --- A training step.


def made_by_train(config):
  """(state, text weights, batch) as the verb train makes them, of zeros."""
  stage, text = build.stage(config.stage), build.text(config.text)
  optimizer, data = build.optimizer(config.optimizer), build.data(config.data)
  devices = devices_of(config)
  placement = Placement(devices)
  spread = mesh.batch_sharding(devices, data.batch_size)
  make = lambda: init_state(
    build.init_net(stage, text, jax.random.key(0)), optimizer
  )
  shapes = jax.eval_shape(make)
  state = jax.device_put(
    jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes),
    place_state(shapes, optimizer, placement),
  )
  records = [{"image": np.zeros((32, 32, 3), np.uint8), "caption": "a star"}]
  batch = next(make_batches(
    records, size=stage.size, lowres_size=stage.lowres_size,
    crop=stage.crop_size, tokenize=build.tokenizer(text),
    global_batch=data.batch_size, seed=data.seed,
  ))  # fmt: skip
  batch = mesh.to_global(batch, spread, data.batch_size)
  return state, placement.put(build.load_text(text)), batch


def test_train_is_the_verbs_step(here):
  """It compiles, takes what the verb has and leaves the state in its places."""
  config = train_config(here)
  devices = devices_of(config)
  assert programs.mode_of(config) == "train"
  (found,) = programs.of(config, "train", devices)
  assert (found.name, found.batch) == ("train", 8)
  args = made_by_train(config)
  assert_alike(args, found.args)
  assert found.params == (found.args[0].params, found.args[1])
  step = jax.jit(
    found.fn, donate_argnums=found.donate, out_shardings=found.out_shardings
  )
  with jax.set_mesh(devices):
    lowered = step.lower(*found.args)
    state, metrics = lowered.compile(QUICK)(*args)
  assert_alike(state, found.args[0])  # and so will the next step take it
  assert int(state.step) == 1 and np.isfinite(metrics["loss"])
  assert args[0].params["conv_in"]["kernel"].is_deleted()  # donated
  # The step got the shardings of gradients, such as those of a convolution.
  assert '[{}, {}, {"fsdp"}, {"tensor"}]> : tensor<3x3x8x8' in lowered.as_text()


def test_operations_grow_with_the_batch(here):
  def program(batch_size, **train):
    config = train_config(here, batch_size, **train)
    (found,) = programs.of(config, "train", devices_of(config))
    return found.fn, *found.args

  few = count_flops(*program(8))
  assert few > 0
  assert 1.9 * few < count_flops(*program(16)) <= 2 * few
  # In parts it is the same work, in a loop over them.
  step, *args = program(16, accumulate=4)
  loops = re.findall(r" length=(\d+)", str(jax.make_jaxpr(step)(*args)))
  assert loops == ["4"]


def test_what_train_would_refuse_is_refused(here):
  config = train_config(here, accumulate=4)
  with pytest.raises(ValueError, match="batch_size is 8, .* accumulate 4$"):
    list(programs.of(config, "train", devices_of(config)))
  del config.train
  with pytest.raises(ValueError, match="^config key train is missing"):
    list(programs.of(config, "train", devices_of(config)))


# --- Sampling.


@pytest.fixture(scope="module")
def sampled(here):
  """What sampling hands its programs: [(stage, rows, arguments)]."""
  file = here / "tiny.py"
  config = cascade_config(here).to_json_best_effort()
  file.write_text(
    "import json\nfrom ml_collections import ConfigDict\n\n"
    f"def get_config():\n  return ConfigDict(json.loads({config!r}))\n"
  )
  seen = []

  def sampler(stage, net, carry, first, last, inputs, sampling, *, rows):
    seen.append((stage, rows, (net, carry, first, last, inputs, sampling)))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), carry)
    return mesh.put_rows(zeros, rows)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(imagen, "run_stage", sampler)
    loaded = imagen_jax.load(str(file))
    loaded.sample("a red star", num_images=4, progress=False)
  return seen


def test_sample_is_the_verbs_samplers(here, sampled):
  config = cascade_config(here)
  assert programs.mode_of(config) == "sample"
  embed, *stages = programs.of(config, "sample", devices_of(config))
  assert [p.name for p in stages] == ["sample base", "sample larger"]
  # The steps are done in parts: the program's arguments are those of all.
  firsts = [seen for seen in sampled if seen[2][2] == 0]
  for found, (stage, rows, args) in zip(stages, firsts, strict=True):
    assert found.fn.args == (stage,)
    assert found.fn.keywords == {"rows": rows}
    assert (found.args[2], found.args[3]) == (0, 2)
    *arrays, sampling = (*args[:2], *args[4:])
    *expected, told = (*found.args[:2], *found.args[4:])
    assert_alike(arrays, expected)
    assert sampling == told
    assert found.params is found.args[0]
    assert found.flops() > 0
  # Each takes what the one before makes.
  words = jax.eval_shape(embed.fn, *embed.args).tokens
  assert words.shape[1:] == stages[0].args[4].text.tokens.shape[1:]
  assert words.dtype == stages[0].args[4].text.tokens.dtype
  pictures = jax.eval_shape(stages[0].fn, *stages[0].args).z
  lowres = stages[1].args[4].lowres
  assert stages[0].args[4].lowres is None
  assert (pictures.shape, pictures.dtype) == (lowres.shape, lowres.dtype)


def test_operations_grow_with_the_steps(here):
  config = cascade_config(here)
  count = lambda: list(programs.of(config, "sample", devices_of(config)))[1]
  few = count()
  config.base.sampling.steps = 4
  many = count()
  assert (few.loop, many.loop) == (2, 4)
  assert 1.8 * few.flops() < many.flops() <= 2 * few.flops()


def test_images_are_left_where_the_next_part_of_the_steps_takes_them(here):
  config = cascade_config(here)
  devices = devices_of(config)
  _, base, _ = programs.of(config, "sample", devices)
  with jax.set_mesh(devices):
    made = jax.jit(base.fn).lower(*base.args).compile(QUICK).output_shardings
  for sharding, leaf in zip(made, base.args[1], strict=True):
    assert sharding.is_equivalent_to(leaf.sharding, leaf.ndim)


def test_embed_is_the_verbs_encoder(here):
  config = cascade_config(here)
  devices = devices_of(config)
  text = build.text(config.text)
  ids, mask = build.tokenizer(text)(["a red star"] * 8)
  ids, mask = jax.device_put((ids, mask), mesh.batch_sharding(devices, 8))
  for mode, placement in (
    ("embed", Placement(devices)),
    ("sample", build.text_placement(devices)),
  ):
    found = next(iter(programs.of(config, mode, devices)))
    assert (found.name, found.batch) == ("embed", 8)
    params = placement.put(build.load_text(text))
    assert_alike((params, ids, mask), found.args)
    assert found.params is found.args[0]
  kernels = [x for x in jax.tree.leaves(found.params) if x.ndim == 2]
  assert {x.dtype for x in kernels} >= {jnp.dtype(jnp.bfloat16)}
  assert programs.mode_of({"text": config.text}) == "embed"
  flops = count_flops(found.fn, *found.args)
  per_token = 2 * sum(
    leaf.size
    for path, leaf in jax.tree.leaves_with_path(found.params)
    if path[-1].key == "kernel"
  )
  attention = 2 * 2 * (2 * 16 * 16 * 2 * 8)  # per prompt, of two layers
  assert flops == 8 * (16 * per_token + attention)


def test_sampling_without_a_mesh_is_on_all_devices(here):
  config = cascade_config(here)
  assert dict(build.sampling_devices(config).shape) == MESH
  del config.mesh
  assert list(build.sampling_devices(config).devices.flat) == jax.devices()
