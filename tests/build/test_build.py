"""build: configs become the objects they name, and mistakes are named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax import build
from imagen_jax.configs import shapes, shapes16, shapes64, shapes256
from imagen_jax.diffusion import gaussian, schedules
from imagen_jax.interop import published
from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.nets.unet import UNet
from imagen_jax.stage import Stage


def built(config):
  """Everything that a stage's config holds."""
  build.check_keys(config)
  return (
    build.stage(config.stage),
    build.text(config.text),
    build.data(config.data),
    build.training(config.train),
    build.sampling(config.sampling),
    build.optimizer(config.optimizer),
  )


def test_a_stage():
  config = shapes256.get_config().stage
  config.net.dtype = "bfloat16"
  config.net.blocks = [
    {"channels": 8},
    {"channels": 16, "strides": [4, 4], "self_attention": True},
  ]
  config.prediction, config.loss_space = "x", "eps"
  assert build.stage(config) == Stage(
    net=EfficientUNet(
      blocks=(
        BlockSpec(channels=8),
        BlockSpec(channels=16, strides=(4, 4), self_attention=True),
      ),
      embed_dim=config.net.embed_dim,
      feature_pooling_type="attention",
      text_width=config.net.text_width,
      norm_groups=config.net.norm_groups,
      dtype=jnp.bfloat16,
    ),
    size=256,
    lowres_size=64,
    crop_size=64,
    schedule=schedules.LinearSchedule(),
    prediction=gaussian.X,
    loss_space=gaussian.EPS,
    text_drop=0.1,
    max_aug_level=0.3,
  )


def test_what_a_stage_leaves_out_is_as_in_the_paper():
  config = {"size": 64, "net": {"kind": "UNet"}}
  assert build.stage(config) == Stage(UNet(), 64)
  assert build.stage(config).prediction == gaussian.EPS


def test_text():
  text = build.text(shapes64.get_config().text)
  assert isinstance(text.encoder, T5Encoder)
  assert text.length == 32
  assert text == build.text(shapes256.get_config().text)


@pytest.mark.parametrize(
  ("config", "expected"),
  [
    (
      {"kind": "adam", "learning_rate": 0.1, "b1": 0.5, "clip_norm": 1.0},
      lambda rate: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(rate, b1=0.5)
      ),
    ),
    ({"kind": "adam", "learning_rate": 0.1}, optax.adam),
    ({"kind": "adafactor", "learning_rate": 0.1}, optax.adafactor),
  ],
)
def test_optimizer(config, expected):
  config |= {"warmup_steps": 2, "decay_steps": 6}
  rate = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 6)
  params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
  grads = jax.tree.map(lambda p: p + 0.5, params)
  results = []
  for made in (build.optimizer(config), expected(rate)):
    state = made.init(params)
    for _ in range(3):
      updates, state = made.update(grads, state, params)
    results.append(updates)
  jax.tree.map(np.testing.assert_array_equal, *results)
  assert np.abs(results[0]["b"]).max() > 0.01


def test_paths(tmp_path, monkeypatch):
  """A path is the file system's; the package has a name of its own."""
  monkeypatch.chdir(tmp_path)
  name = "weights/shapes.model"
  shipped = published.PACKAGE / name
  assert published.resolve(f"package://{name}") == shipped
  assert published.resolve(name) == shipped  # as older configs have it
  assert str(published.resolve("weights/a.model")) == "weights/a.model"
  assert str(published.resolve("/weights/a.model")) == "/weights/a.model"
  assert "~" not in str(published.resolve("~/a.model"))
  (tmp_path / "weights").mkdir()
  (tmp_path / name).touch()
  assert str(published.resolve(name)) == name
  assert published.resolve(f"package://{name}") == shipped


NOT_SHIPPED = (
  "weights/a.model", "weights", "weights/", "", "a/b", "weights/../x",
  "../imagen_jax/weights/shapes.model", "configs/shapes.py", "imagen.py",
)  # fmt: skip


@pytest.mark.parametrize("path", NOT_SHIPPED)
def test_what_the_package_has_not(path):
  with pytest.raises(ValueError, match="is no file of the package") as caught:
    published.resolve(f"package://{path}")
  assert "shapes.model" in str(caught.value)


def test_the_tokenizer_of_the_package():
  text = build.text(shapes16.get_config().text)
  ids, mask = build.tokenizer(text)(["a red star"])
  assert ids.shape == mask.shape == (1, text.length)


def set_at(config, path: str, value):
  """Sets config.a.b for the path "a.b"."""
  *parents, last = path.split(".")
  for name in parents:
    config = config[name]
  config[last] = value


PARTS = (
  "stage",
  "stage.net",
  "stage.schedule",
  "text",
  "text.encoder",
  "data",
  "train",
  "optimizer",
  "sampling",
  "sampling.step",
  "sampling.threshold",
)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("module", [shapes16, shapes64])
def test_an_unknown_key_is_named_wherever_it_is(module, part):
  config = module.get_config()
  set_at(config, f"{part}.colour", 1)
  with pytest.raises(ValueError) as caught:
    built(config)
  said = str(caught.value)
  assert said.startswith(f"unknown config key {part}.colour, expected ")
  assert said.count("\n") == 0


def test_an_unknown_key_of_a_block_is_named():
  config = shapes64.get_config()
  blocks = [dict(block) for block in config.stage.net.blocks]
  blocks[1]["colour"] = 1
  config.stage.net.blocks = tuple(blocks)
  with pytest.raises(
    ValueError, match=r"key stage.net.blocks\[1\].colour, exp"
  ):
    built(config)


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    ("stage.net", 3, "config stage.net is 3, expected keys with values"),
    ("stage.net.kind", "Unet", "stage.net.kind is 'Unet', expected one of 'UN"),
    ("stage.net.dtype", "f32", "stage.net.dtype is 'f32', expected one of 'fl"),
    ("stage.net.blocks", 3, "config stage.net.blocks is 3, expected tuple"),
    ("stage.schedule.kind", "cos", "kind is 'cos', expected one of 'cosine', "),
    ("stage.prediction", "noise", "prediction is 'noise', expected one of 'ep"),
    ("stage.size", "64", "config stage.size is '64', expected int"),
    ("stage.size", 60, "config stage: size is 60, expected a multiple of 8"),
    ("stage.text_drop", "some", "stage.text_drop is 'some', expected float"),
    ("data.batch_size", 0, "config data: batch_size is 0, expected at least 1"),
    ("data.seed", -1, "config data: seed is -1, expected 0 to 4294967295"),
    ("train.steps", 0, "config train: steps is 0, expected at least 1"),
    ("train.log_every", 0, "log_every is 0, expected at least 1"),
    ("train.ema_decay", 2.0, "ema_decay is 2.0, expected 0 to 1"),
    ("sampling.steps", 0, "config sampling: steps is 0, expected at least 1"),
    (
      "sampling.timesteps",
      27,
      "sampling.timesteps is 27, expected tuple",
    ),
    ("sampling.timesteps", (9, 5), "config sampling: steps is 32 beside time"),
    ("sampling.aug_level", 2.0, "aug_level is 2.0, expected 0 to 1"),
    ("sampling.step.kind", "euler", "is 'euler', expected one of 'ddim', 'an"),
    ("optimizer.kind", "sgd", "optimizer.kind is 'sgd', expected one of 'adam"),
    ("optimizer.clip_norm", "x", "clip_norm is 'x', expected float | None"),
    (
      "optimizer.warmup_steps",
      10**6,
      "warmup_steps is 1000000, expected fewer",
    ),
    ("text.encoder", None, "config text.encoder is None, expected keys with"),
    ("train", None, "config train is None, expected keys with values"),
  ],
)
def test_bad_values_are_named(path, value, said):
  config = shapes64.get_config().copy_and_resolve_references()
  config = config.__class__(config.to_dict(), type_safe=False)
  set_at(config, path, value)
  with pytest.raises(ValueError) as caught:
    built(config)
  assert said in str(caught.value)


@pytest.mark.parametrize("key", build.STAGE_KEYS)
def test_a_missing_part_is_named(key):
  config = shapes16.get_config()
  del config[key]
  with pytest.raises(ValueError, match=f"^config key {key} is missing, expect"):
    built(config)


def test_a_cascade():
  cascade = build.cascade(shapes.get_config())
  assert cascade.names == ("shapes16", "shapes64", "shapes256")
  assert [stage.size for stage in cascade.stages] == [16, 64, 256]
  assert all(dataclasses.is_dataclass(s) for s in cascade.samplings)


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    (
      "colour",
      1,
      "^config key colour is unknown, expected stages, text, batch",
    ),
    (
      "shapes64.colour",
      1,
      "^config key shapes64.colour is unknown, expected s",
    ),
    (
      "shapes64.stage.colour",
      1,
      "^unknown config key shapes64.stage.colour, e",
    ),
    ("stages", ("shapes16", "x"), "^config key shapes256 is unknown, expected"),
    ("stages", (), "a cascade has no stages|key shapes16 is unknown"),
    ("batch_size", 0, "^config batch_size is 0, expected at least 1"),
    ("shapes64.stage.lowres_size", 32, "lowres_size 32, expected 16, the size"),
  ],
)
def test_a_bad_cascade_is_named(path, value, said):
  config = shapes.get_config()
  set_at(config, path, value)
  with pytest.raises(ValueError, match=said):
    build.cascade(config)


def test_a_stage_is_no_cascade_nor_the_other_way_round():
  with pytest.raises(ValueError, match="^config key stages is missing, expect"):
    build.cascade(shapes16.get_config())
  with pytest.raises(
    ValueError, match="^the config is of a cascade, expected that of"
  ):
    build.check_keys(shapes.get_config())
