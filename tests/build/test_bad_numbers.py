"""Settings that cannot work are refused as the config is read."""

import copy
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import build
from imagen_jax.build import configs
from imagen_jax.diffusion import gaussian, schedules

BAD = (-5, 0, -1.0, math.nan, math.inf, 10**10, (), None, "", 1e-30, 0.995)


def changed(config, key, value):
  """A copy of a config in JSON with another value."""
  config = copy.deepcopy(config)
  *sections, last = key.split(".")
  section = config
  for name in sections:
    section = section[name]
  section[last] = value
  return config


def keys(section, prefix=""):
  for key, value in section.items():
    if isinstance(value, dict):
      yield from keys(value, f"{prefix}{key}.")
    else:
      yield prefix + key


@pytest.fixture(scope="module", params=["shapes16", "shapes64"])
def config(request):
  """The config of a stage with every default written out."""
  return build.as_json(configs.read_config(request.param))


def test_every_mistake_is_a_sentence(config):
  """Values of other kinds and out of all ranges, for every key."""
  for key in keys(config):
    for value in BAD:
      try:
        build.run(changed(config, key, value))
      except ValueError as error:
        section = key.split(".")[0]
        assert section in str(error) or key.split(".")[-1] in str(error), error


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("stage.schedule.logsnr_min", -88.0, "logsnr_min is -88.0, expected -80 t"),
    ("stage.schedule.logsnr_max", 100.0, "logsnr_max is 100.0, expected -80 "),
    ("stage.times", None, "config stage.times is None, expected one of"),
    ("sampling.threshold.p", 0.995, "threshold p is 0.995, expected a perce"),
    ("optimizer.decay_steps", 999, "optimizer.decay_steps is 999, expected a"),
    ("optimizer.warmup_steps", -5, "warmup_steps is -5, expected fewer than"),
    ("optimizer.b1", 1.0, "b1 is 1.0, expected at least 0, less than 1"),
    ("text.length", -5, "config text: length is -5, expected 2 to 10,000"),
    ("text.batch_size", 0, "config text: batch_size is 0, expected 1 to 1,00"),
    ("text.encoder.emb_dim", 0, "config text.encoder.emb_dim is 0, expected"),
    ("text.encoder.num_encoder_layers", 10**7, "expected 1 to 1,000"),
    ("stage.net.embed_dim", -8, "config stage.net.embed_dim is -8, expected"),
    ("stage.net.num_res_blocks", 10**7, "is 10000000, expected 1 to 1,000"),
    ("stage.net.channel_mult", (), "config stage.net.channel_mult is empty, "),
    ("stage.net.channel_mult", (1, 0), "is (1, 0), expected 1 to 10,000,000"),
    ("stage.net.residual_scale", math.nan, "residual_scale is nan, expected"),
    ("stage.net.precision", "low", "net.precision is 'low', expected one of"),
  ],
)
def test_what_cannot_work_is_named(key, value, said):
  config = build.as_json(configs.read_config("shapes16"))
  with pytest.raises(ValueError) as caught:
    build.run(changed(config, key, value))
  assert said in str(caught.value)


def test_sizes_of_blocks_are_checked_too():
  config = configs.read_config("shapes256")
  config.stage.net.blocks[0]["channels"] = 0
  with pytest.raises(ValueError, match=r"net.blocks.channels is 0, expected 1"):
    build.stage(config.stage)


@pytest.mark.parametrize("end", [-80.0, 80.0])
@pytest.mark.parametrize("prediction", [gaussian.EPS, gaussian.X, gaussian.V])
def test_the_widest_schedule_gives_numbers(prediction, end):
  """What lies beyond it does not: the kind's limit is float32's."""
  z, out = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
  logsnr = jnp.full(3, end)
  x_hat = prediction.to_x(out, z, logsnr)
  ratio = prediction.error_ratio(logsnr)
  for found in (*schedules.alpha_sigma(logsnr), x_hat, ratio, 1 / ratio):
    assert np.isfinite(found).all()
  assert jax.numpy.isinf(gaussian.X.error_ratio(jnp.float32(-100.0)))
