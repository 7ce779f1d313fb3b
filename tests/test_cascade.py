"""What stages a cascade can have, and how they can be sampled."""

import dataclasses
import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.build import net_placement
from imagen_jax.cascade import (
  Cascade,
  by_rows,
  carry_places,
  stage_inputs,
  used_shapes,
)
from imagen_jax.diffusion.gaussian import X
from imagen_jax.diffusion.guidance import NoThreshold
from imagen_jax.diffusion.samplers import LearnedAncestral
from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.mesh import (
  MeshShape,
  batch_sharding,
  local_rows,
  make_mesh,
  put_rows,
)
from imagen_jax.request import Row
from imagen_jax.stage import Sampling, Stage, run_stage
from imagen_jax.types import Conditioning, TextEmbedding


class Fake(nn.Module):
  """A net that answers fn(z, cond)."""

  fn: Callable
  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    return self.fn(z, cond)


def zeros(z, cond):
  return jnp.zeros_like(z)


def make_stage(fn, size, lowres_size=None):
  return Stage(Fake(fn), size, prediction=X, lowres_size=lowres_size)


def make_cascade(*stages, **sampling):
  plain = {"steps": 1, "guidance": 1.0, "threshold": NoThreshold()}
  names = ("small", "middle", "large")[: len(stages)]
  return Cascade(names, stages, (Sampling(**plain | sampling),) * len(stages))


THREE = (
  make_stage(zeros, 4),
  make_stage(zeros, 8, 4),
  make_stage(zeros, 32, 8),
)


@pytest.mark.parametrize(
  ("stages", "message"),
  [
    ((), "a cascade has no stages"),
    (THREE[1:], "stage small has lowres_size 4, expected None"),
    ((THREE[0], THREE[0]), "stage middle has lowres_size None, expected 4"),
    ((THREE[0], THREE[2]), "stage middle has lowres_size 8, expected 4"),
    ((*THREE[:2], THREE[1]), "stage large has lowres_size 4, expected 8"),
  ],
)
def test_stages_that_do_not_chain(stages, message):
  with pytest.raises(ValueError, match=message):
    make_cascade(*stages)


def test_an_augmentation_level_beyond_what_was_trained():
  larger = dataclasses.replace(THREE[1], max_aug_level=0.3)
  make_cascade(THREE[0], larger, aug_level=0.3)
  with pytest.raises(
    ValueError, match="stage middle: sampling has aug_level 0.4"
  ):
    make_cascade(THREE[0], larger, aug_level=0.4)


def test_a_learned_variance_that_the_net_does_not_have():
  with pytest.raises(
    ValueError, match="stage small: sampling is with the learned variance, exp"
  ):
    make_cascade(THREE[0], step=LearnedAncestral())


LEVELS = np.array([20.0, 900.0], np.float32)
TEXT = TextEmbedding(np.ones((2, 3, 8), np.float32), np.ones((2, 3), bool))
SMALL = dict(text_width=8, norm_groups=4, embed_dim=8, dtype=jnp.bfloat16)
BLOCK = BlockSpec(channels=8, num_res_blocks=2, num_attention_heads=2)
NETS = {
  "unet": UNet(
    image_size=4, channel_mult=(1,), num_res_blocks=2, attn_resolutions=(4,),
    text_cross_attn_res=(4,), per_head_channels=8, scan=True, **SMALL,
  ),
  "efficient": EfficientUNet(
    blocks=(dataclasses.replace(BLOCK, text_cross_attention=True),),
    scan=True, **SMALL,
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_weights_as_they_are_used_give_the_same_bits(name, random_params):
  """Of nets in bfloat16; half of the bytes, but for norms and heads."""
  stage = Stage(NETS[name], size=4, prediction=X)
  init = lambda: stage.init(jax.random.key(0), text_length=3, text_dim=8)
  cond = Conditioning(TEXT)
  wide = random_params(stage.net, np.zeros((2, 4, 4, 3)), np.zeros(2), cond)
  like = used_shapes(init)
  used = jax.tree.map(lambda a, b: np.asarray(a, b.dtype), wide, like)
  assert jax.tree.map(np.shape, used) == jax.tree.map(np.shape, wide)
  kept = {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(used)
    if leaf.dtype == np.float32
  }
  others = r"norm\w*/\w+$|/cls_pos$|^(conv|dense)_out/"
  assert [path for path in kept if not re.search(others, path)] == []
  halved = [leaf for leaf in jax.tree.leaves(used) if leaf.dtype != np.float32]
  assert len(halved) > 20 and {leaf.dtype for leaf in halved} == {
    jnp.dtype("bfloat16")
  }
  z = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
  run = jax.jit(lambda net: stage.net.apply({"params": net}, z, LEVELS, cond))
  one, two = run(wide), run(used)
  assert np.std(one) > 0.1
  np.testing.assert_array_equal(one, two)
  float32 = dataclasses.replace(stage, net=stage.net.clone(dtype=jnp.float32))
  init = lambda: float32.init(jax.random.key(0), text_length=3, text_dim=8)
  assert {x.dtype for x in jax.tree.leaves(used_shapes(init))} == {
    jnp.dtype("float32")
  }


def test_a_single_image_is_spread_by_its_height(random_params):
  """Over devices that hold all weights; it is the image of one device."""
  net = EfficientUNet((BLOCK,), **SMALL | {"dtype": jnp.float32})
  stage = Stage(net, size=16, lowres_size=8, prediction=X)
  normal = np.random.default_rng(0).normal(size=(1, 16, 16, 3))
  lowres = np.clip(normal[:, ::2, ::2], -1, 1).astype(np.float32)
  text = jax.tree.map(lambda leaf: leaf[:1], TEXT)
  cond = Conditioning(text, lowres, np.zeros(1))
  params = random_params(net, normal, np.zeros(1), cond)
  sampling = Sampling(steps=2, aug_level=0.2)

  def draw(devices, height):
    rows = batch_sharding(devices, 1)
    places = carry_places(rows, height)
    inputs = stage_inputs(1, [Row(0, 3, 5)], text, lowres, rows)
    with jax.set_mesh(devices):
      carry = run_stage(
        stage,
        net_placement(devices, height).put(params),
        put_rows(stage.blank(1), places),
        0,
        sampling.num_steps,
        inputs,
        sampling.args(),
        rows=places,
      )
      assert carry.z.sharding.shard_shape(carry.z.shape)[1] == (
        16 // devices.size
      )
      return local_rows(by_rows(carry.z, rows=rows))

  one = draw(make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]), False)
  many = draw(make_mesh(MeshShape(1, 1, 4), jax.devices()[:4]), True)
  assert one.shape == (1, 16, 16, 3) and np.std(one) > 0.1
  np.testing.assert_allclose(one, many, atol=2e-5)
