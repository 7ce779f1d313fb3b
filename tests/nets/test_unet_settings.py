"""Settings of both U-Nets: what is refused, and what may be left out."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.unet import UNet
from imagen_jax.types import Conditioning, TextEmbedding

SIDE = 8
OUTER = BlockSpec(4, num_res_blocks=1)
INNER = BlockSpec(
  8, num_res_blocks=1, text_cross_attention=True, num_attention_heads=2
)


def make_unet(**fields):
  """Of two levels, the lower one with attention to pixels and text."""
  attention = {"attn_resolutions": (4,), "text_cross_attn_res": (4,)}
  return UNet(image_size=SIDE, channel_mult=(1, 2), **attention | fields)


def make_efficient(*blocks):
  return EfficientUNet(blocks, embed_dim=8, text_width=10, norm_groups=4)


def make_inputs():
  """(z, time, cond) of two examples that differ in their text alone."""
  tokens = jnp.stack([jnp.zeros((3, 6)), jnp.ones((3, 6))])
  text = TextEmbedding(tokens, jnp.ones((2, 3), bool))
  return jnp.ones((2, SIDE, SIDE, 3)), jnp.full(2, 300.0), Conditioning(text)


def shapes(net):
  """The shapes of its parameters; to ask for them is to build the net."""
  init = jax.eval_shape(net.init, jax.random.key(0), *make_inputs())
  return jax.tree.map(jnp.shape, init["params"])


@pytest.mark.parametrize(
  ("net", "message"),
  [
    (
      make_unet(embed_dim=6, per_head_channels=8, norm_groups=2),
      "per_head_channels is 8, expected a divisor of 12, the channels at",
    ),
    (
      make_efficient(dataclasses.replace(INNER, num_attention_heads=3)),
      "num_attention_heads is 3, expected a divisor of 16, twice the channels",
    ),
  ],
)
def test_attention_heads_that_do_not_fit(net, message):
  with pytest.raises(ValueError, match=message):
    shapes(net)


@pytest.mark.parametrize("name", ["attn_resolutions", "text_cross_attn_res"])
def test_attention_at_no_levels_resolution(name):
  """It would be left out without a word, and the text with it."""
  net = make_unet(**{name: (4, 16)})
  with pytest.raises(
    ValueError, match=f"{name} has 16, .* image_size {SIDE}: 8, 4"
  ):
    shapes(net)


def test_a_pair_of_blocks_may_keep_the_resolution(random_params):
  """The strided convolutions are optional (Figs. A.28, A.29)."""
  net = make_efficient(OUTER, dataclasses.replace(INNER, strides=None))
  assert net.stride == 2
  params = random_params(net, *make_inputs())
  for name in ("dblock", "ublock"):
    assert params[f"{name}_0"].keys() - params[f"{name}_1"].keys() == {"conv"}
  out = jax.jit(net.apply)({"params": params}, *make_inputs())
  assert out.shape == (2, SIDE, SIDE, 3)
  assert jnp.abs(out[0] - out[1]).max() > 1e-3


def test_a_level_may_have_attention_alone():
  block = BlockSpec(
    8, num_res_blocks=0, self_attention=True, num_attention_heads=2
  )
  net = EfficientUNet(blocks=(block,), embed_dim=8, norm_groups=4)
  z, time, cond = jnp.zeros((1, 4, 4, 3)), jnp.zeros(1), Conditioning()
  made = jax.eval_shape(net.init, jax.random.key(0), z, time, cond)
  assert made["params"]["dblock_0"]["body"].keys() == {"attention"}
  out = jax.eval_shape(net.apply, made, z, time, cond)
  assert out.shape == z.shape
