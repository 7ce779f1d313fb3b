"""What a run will take, against what can be counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import Embedder
from imagen_jax.training.step import init_state, place_state
from imagen_jax.training.summary import (
  batch_sentence,
  memory_table,
  model_flops,
  parameter_table,
)

SETTINGS = {
  "image_size": 4,
  "embed_dim": 8,
  "channel_mult": (1,),
  "num_res_blocks": 1,
  "attn_resolutions": (),
  "text_cross_attn_res": (),
  "feature_pooling_type": "mean",
  "text_width": 8,
  "norm_groups": 4,
}


def last_number(table: str) -> int:
  return int(table.splitlines()[-1].split()[-1].replace(",", ""))


def shaped(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


def test_parameters_by_module():
  params = {"a": {"kernel": shaped(30, 40)}, "bb": {"bias": shaped(7)}}
  assert parameter_table(params).splitlines() == [
    "a           1,200",
    "bb              7",
    "-----------------",
    "parameters  1,207",
  ]


def test_memory_of_one_of_eight_devices():
  """Adam: parameters, average, two moments and a gradient; the text apart."""
  optimizer = optax.adam(1e-3)
  net = {"a": {"kernel": shaped(64, 16)}, "b": {"bias": shaped(16)}}
  placement = Placement(make_mesh(MeshShape(fsdp=8)))
  state = jax.eval_shape(lambda net: init_state(net, optimizer), net)
  state = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    state,
    place_state(state, optimizer, placement),
  )
  text = placement.put({"t": {"kernel": np.zeros((8, 10), jnp.bfloat16)}})
  table = memory_table(state, text)
  each = 4 * (64 * 16 // 8 + 16)
  count = 4  # bytes, of Adam's count of the steps
  assert last_number(table) == 5 * each + count + 2 * 8 * 10 // 8
  assert "average (EMA)" in table


def test_a_step_is_three_passes_whatever_is_computed_again():
  encoder = T5Encoder(16, 8, 2, 1, 4, mlp_dim=16)
  batch = {
    "image": shaped(8, 4, 4, 3),
    "tokens": shaped(8, 4, dtype=jnp.int32),
    "mask": shaped(8, 4, dtype=jnp.bool_),
  }
  text = jax.eval_shape(
    lambda key: encoder.init(
      key, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    )["params"],
    jax.random.key(0),
  )

  def flops(remat):
    stage = Stage(UNet(**SETTINGS, remat=remat), 4)
    params = jax.eval_shape(
      lambda: stage.init(jax.random.key(0), text_length=4, text_dim=8)
    )
    return model_flops(stage, Embedder(encoder), params, text, batch)

  assert flops(("none",)) == flops(("full",))
  # T5's four projections, its attention's two products and its MLP's three;
  # once, so no multiple of three.
  encoding = 2 * 8 * (4 * 4 * 8 * 8 + 2 * 4 * 4 * 8 + 3 * 4 * 8 * 16)
  assert (flops(("none",)) - encoding) % 3 == 0
  assert flops(("none",)) > 2 * encoding


def test_how_a_batch_is_spread():
  made = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
  assert batch_sentence(made, 64, 4) == (
    "batch of 64 = 4 x 16 on data 2 x fsdp 2 x tensor 2: 4 at a time on a "
    "device"
  )
