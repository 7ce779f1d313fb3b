"""A stage as a program for any batch size: jax.export with a symbolic batch."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from imagen_jax.diffusion.gaussian import V
from imagen_jax.diffusion.samplers import (
  DDIM,
  DPMSolver,
  LearnedAncestral,
)
from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.unet import UNet
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import TextEmbedding

LENGTH, DIM, SIZE, LOW = 5, 8, 8, 4
(BATCH,) = export.symbolic_shape("batch")


def unet(**more) -> UNet:
  return UNet(
    image_size=SIZE, embed_dim=8, channel_mult=(1,), num_res_blocks=1,
    attn_resolutions=(8,), text_cross_attn_res=(8,), per_head_channels=8,
    text_width=DIM, norm_groups=4, **more,
  )  # fmt: skip


BLOCK = BlockSpec(channels=8, num_res_blocks=1, num_attention_heads=2)
EFFICIENT = EfficientUNet(
  blocks=(BLOCK,), embed_dim=8, text_width=DIM, norm_groups=4
)
BASE = Stage(unet(), SIZE, prediction=V)
LARGER = Stage(EFFICIENT, SIZE, lowres_size=LOW, prediction=V)
LEARNED = Stage(unet(out_channels=6), SIZE, prediction=V)


def inputs(stage: Stage, batch):
  """(key data, text, low-resolution images) of a batch, as shapes."""
  shape = jax.ShapeDtypeStruct
  text = TextEmbedding(
    shape((batch, LENGTH, DIM), jnp.float32), shape((batch, LENGTH), bool)
  )
  low = stage.lowres_size
  lowres = low and shape((batch, low, low, 3), jnp.float32)
  return shape((batch, 2), jnp.uint32), text, lowres


def params_of(stage: Stage):
  """Shapes of the net's parameters."""
  _, text, lowres = inputs(stage, 1)
  one = jax.ShapeDtypeStruct((1,), jnp.float32)
  image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  key = jax.random.key(0)
  condition = lambda t, x: stage.condition(key[None], t, x, jnp.zeros(1))
  cond = jax.eval_shape(condition, text, lowres)
  made = jax.eval_shape(stage.net.init, key, image, one, cond)
  return made["params"]


@pytest.mark.parametrize(
  ("stage", "sampler"),
  [
    (BASE, DPMSolver()),
    (LARGER, DDIM()),
    (LEARNED, LearnedAncestral()),
  ],
)
def test_sampling_is_one_program_for_every_batch_size(stage, sampler):
  sampling = Sampling(steps=2, guidance=2.0, step=sampler)

  def draw(params, keys, text, lowres):
    keys = jax.random.wrap_key_data(keys)
    return stage.sample(params, keys, text, lowres, sampling=sampling)

  args = (params_of(stage), *inputs(stage, BATCH))
  (found,) = export.export(jax.jit(draw))(*args).out_avals
  assert found.shape == (BATCH, SIZE, SIZE, 3)
