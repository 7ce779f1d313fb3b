"""build: nets that folders of diffusers' describe, and weights by any path."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from imagen_jax import build
from imagen_jax.interop import diffusers, published, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_if):
  folder = tmp_path_factory.mktemp("unet")
  (folder / "config.json").write_text(json.dumps(small_if))
  rng = np.random.RandomState(0)
  state = {
    name: np.float32(rng.randn(*shape))
    for name, shape in diffusers.diffusers_shapes(like(stage(folder))).items()
  }
  path = folder / f"{diffusers.STEM}.safetensors"
  safetensors.numpy.save_file(state, path)
  return folder


def stage(folder, **net):
  net = dict(kind="diffusers", folder=str(folder)) | net
  return build.stage(ConfigDict(dict(size=8, net=net)))


def like(stage):
  init = lambda: stage.init(jax.random.key(0), text_length=3, text_dim=16)
  return jax.eval_shape(init)


def test_a_folder_says_what_net_it_is(folder):
  net = stage(folder, dtype="bfloat16", scan=True).net
  assert (net.embed_dim, net.channel_mult, net.out_channels) == (8, (1, 2), 6)
  assert (net.attn_resolutions, net.text_width) == ((4,), 32)
  assert net.dtype == jnp.bfloat16
  assert net.scan


def test_a_net_without_variance_has_the_first_outputs(folder):
  six, three = stage(folder), stage(folder, out_channels=3)
  assert three.net.out_channels == 3
  whole = published.load_net(str(folder), like(six))
  half = published.load_net(str(folder), like(three))
  for name in ("kernel", "bias"):
    np.testing.assert_array_equal(
      half["conv_out"][name], whole["conv_out"][name][..., :3]
    )


def test_weights_of_every_kind_are_the_same(folder, tmp_path):
  shapes = like(stage(folder))
  params = published.load_net(str(folder), shapes)
  weights.save_weights(tmp_path / "a.safetensors", params, dtype=jnp.float32)
  again = published.load_net(str(tmp_path / "a.safetensors"), shapes)
  jax.tree.map(np.testing.assert_array_equal, params, again)


def test_a_folder_that_is_not_there_is_named(tmp_path):
  with pytest.raises(ValueError, match="lost.*config.json cannot be read"):
    stage(tmp_path / "lost")
