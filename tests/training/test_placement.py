"""The training step on a mesh, in parts, and what its program has of places.

As the verb train calls it: a real net with loops and recomputing, T5 in the
step, the weights in parts on 8 devices.
"""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel import mesh
from imagen_jax.parallel.sharding import Placement
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import Embedder
from imagen_jax.training.step import (
  init_state,
  make_train_step,
  place_state,
  split,
)
from imagen_jax.types import Conditioning, TextEmbedding

BATCH, SIDE, LENGTH, DIM = 16, 4, 4, 8
# Two layers of 2 heads, 4 wide; two residual blocks with both attentions.
ENCODER = T5Encoder(16, DIM, 2, 2, 4, mlp_dim=16, scan=True)
BLOCK = BlockSpec(8, None, (3, 3), 2, True, True, 2, remat="full")
SETTINGS = {
  "embed_dim": 8, "feature_pooling_type": "mean", "text_width": 8,
  "norm_groups": 4, "scan": True,
}  # fmt: skip
STAGE = Stage(EfficientUNet((BLOCK,), **SETTINGS), SIDE, lowres_size=SIDE // 2)
UNET = UNet(
  image_size=SIDE,
  channel_mult=(1,),
  num_res_blocks=2,
  attn_resolutions=(SIDE,),
  text_cross_attn_res=(SIDE,),
  per_head_channels=8,
  remat=("products",),
  **SETTINGS,
)
# eps: rounding errors of a gradient near 0 shall not become whole steps.
OPTIMIZERS = {
  "adam": optax.adam(3e-2, eps=1e-4),
  "adafactor": optax.adafactor(
    1e-2, 8, multiply_by_parameter_scale=False, eps=1e-8
  ),
}
# How many devices along each axis, and in how many parts Adam's batch is.
MESHES = {"one": ((1, 1, 1), 1), "eight": ((2, 2, 2), 4)}
QUICK = {"xla_backend_optimization_level": 0}  # to compile
KERNEL = ("dblock_0", "body", "res_0", "conv_0", "kernel")


class Small(nn.Module):
  """A net that compiles fast, of all that it is given."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    told = [cond.text.tokens.mean(1), time[:, None] / 1000]
    told = [*told, cond.lowres.mean((1, 2)), cond.aug_level[:, None]]
    told = nn.Dense(3, name="told")(jnp.concatenate(told, axis=1))
    return nn.Dense(3, name="pixels")(z) * told[:, None, None, :]


SMALL = Stage(Small(), SIDE, lowres_size=SIDE // 2, text_drop=0.5)


@functools.cache
def make_batch():
  rng = np.random.default_rng(0)
  picture = lambda side: np.float32(rng.uniform(-1, 1, (BATCH, side, side, 3)))
  mask = np.arange(LENGTH)[None, :] < rng.integers(1, LENGTH + 1, (BATCH, 1))
  return {
    "image": picture(SIDE),
    "lowres": picture(SIDE // 2),
    "tokens": rng.integers(1, 16, (BATCH, LENGTH), np.int32) * mask,
    "mask": mask,
  }


@functools.cache
def make_weights(stage):
  """(net, text) as arrays of numpy: normals, the head's too."""
  ids, mask = jnp.ones((1, LENGTH), jnp.int32), jnp.ones((1, LENGTH), bool)
  init = lambda key: (
    stage.init(key, text_length=LENGTH, text_dim=DIM),
    ENCODER.init(key, ids, mask)["params"],
  )
  rng = np.random.default_rng(0)

  def leaf(path, shape):
    values = rng.normal(size=shape.shape) / np.sqrt(shape.shape[0] + 10)
    values += getattr(path[-1], "key", None) == "scale"
    return values.astype(np.float32)

  shapes = jax.eval_shape(init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(leaf, shapes)


def at(tree, path=KERNEL):
  return functools.reduce(lambda node, name: node[name], path, tree)


def assert_same(one, two, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, **tolerance), one, two
  )


@pytest.fixture(scope="module")
def trained():
  """trained(optimizer, devices): after 3 steps on one batch.

  (state, its places, metrics of every step, the lowered program).
  """

  @functools.cache
  def trained(name, devices):
    optimizer, (sizes, parts) = OPTIMIZERS[name], MESHES[devices]
    parts = parts if name == "adam" else 1
    devices = mesh.make_mesh(
      mesh.MeshShape(*sizes), jax.devices()[: np.prod(sizes)]
    )
    placement = Placement(devices)
    net, text = make_weights(STAGE)
    state = init_state(net, optimizer)
    places = place_state(state, optimizer, placement)
    spread = mesh.batch_sharding(devices, BATCH, parts)
    batch = mesh.to_global(make_batch(), spread, BATCH)
    step = make_train_step(
      STAGE, Embedder(ENCODER), optimizer, decay=0.9, seed=3, accumulate=parts,
      shardings=places.params,
    )  # fmt: skip
    step = jax.jit(step, out_shardings=(places, mesh.replicated(devices)))
    args = jax.device_put(state, places), placement.put(text)
    with jax.set_mesh(devices):
      lowered = step.lower(*args, batch)
      step = lowered.compile(QUICK)
      state, history = args[0], []
      for _ in range(3):
        state, metrics = step(state, args[1], batch)
        history.append(jax.tree.map(np.asarray, metrics))
    return state, places, history, lowered.as_text()

  return trained


# --- On a mesh.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_mesh_is_one_device(trained, name):
  """Adam's in four parts besides, which on one device are the whole."""
  state, _, history, _ = trained(name, "eight")
  one, _, expected, _ = trained(name, "one")
  assert_same(history, expected, atol=1e-4)
  assert_same(state.params, one.params, atol=5e-5)
  assert_same(state.ema, one.ema, atol=5e-5)
  assert_same(state.opt_state, one.opt_state, atol=1e-6)
  assert int(state.step) == 3
  net, _ = make_weights(STAGE)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, net)
  assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_stays_in_its_places(trained, name):
  """And these are parts: of the kernel's channels, in and out, a half each."""
  state, places, *_ = trained(name, "eight")
  for leaf, place in zip(
    jax.tree.leaves(state), jax.tree.leaves(places), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
  moments = {
    "adam": [("mu", (3, 3, 4, 4)), ("nu", (3, 3, 4, 4))],
    "adafactor": [("v_row", (3, 3, 4)), ("v_col", (3, 3, 4))],
  }[name]
  kept = [(optax.tree.get(state.opt_state, k), part) for k, part in moments]
  kept += [(state.params, (3, 3, 4, 4)), (state.ema, (3, 3, 4, 4))]
  for tree, part in kept:
    shards = at(tree).addressable_shards
    assert {shard.data.shape for shard in shards} == {part}
    assert len(shards) == 8


# --- In parts.


def test_split_gives_every_device_of_each_part():
  rows = np.arange(16).reshape(8, 2)
  parts = split(rows, 4)
  assert parts.shape == (4, 2, 2)
  for i, part in enumerate(parts):
    np.testing.assert_array_equal(part, rows[i::4])


def test_parts_on_a_device_are_the_whole():
  net, text = make_weights(SMALL)
  optimizer = OPTIMIZERS["adam"]

  def after(parts):
    step = make_train_step(
      SMALL, Embedder(ENCODER), optimizer, decay=0.9, seed=3, accumulate=parts
    )
    step = jax.jit(step, compiler_options=QUICK)
    state = init_state(net, optimizer)
    for _ in range(2):
      state, metrics = step(state, text, make_batch())
    return state, metrics

  assert_same(after(4), after(1), atol=1e-5)


def test_the_frozen_encoder_runs_once_for_all_parts():
  """Its weights would otherwise be gathered once for each part."""
  encoded = []

  class Recorded(Embedder):
    def for_training(self, params, ids, mask, dropped):
      encoded.append(ids.shape)
      return super().for_training(params, ids, mask, dropped)

  net, text = make_weights(SMALL)
  optimizer = OPTIMIZERS["adam"]
  step = make_train_step(
    SMALL, Recorded(ENCODER), optimizer, decay=0.9, seed=3, accumulate=4
  )
  jax.eval_shape(step, init_state(net, optimizer), text, make_batch())
  assert encoded == [(BATCH, LENGTH)]


def test_losses_do_not_depend_on_how_the_batch_is_cut():
  """Each example's own, by the draws that were made for the whole."""
  net, _ = make_weights(SMALL)
  batch, draws = make_batch(), SMALL.draw(jax.random.key(1), BATCH)
  tokens = np.random.default_rng(1).normal(size=(BATCH, LENGTH, DIM))
  text = TextEmbedding(np.float32(tokens), batch["mask"])
  assert 0 < draws.dropped.sum() < BATCH
  whole = draws, batch["image"], text, batch["lowres"]
  loss_of = jax.jit(SMALL.loss, compiler_options=QUICK)
  loss, logsnr = loss_of(net, *whole)
  assert loss.shape == (BATCH,) and len(np.unique(loss)) == BATCH
  for rows in (slice(8), slice(8, None), slice(1, None, 2)):
    part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], whole)
    assert_same(loss_of(net, *part), (loss[rows], logsnr[rows]), atol=1e-5)


# --- What the lowered program holds.

BATCH_ROWS = '[{"fsdp", "data"}, '
PICTURES = f"tensor<{BATCH}x{SIDE}x{SIDE}x8xf32>"
WORDS = f"tensor<{BATCH}x{LENGTH}x{DIM}xf32>"


def constraints(text):
  """The constraints in a program: [(partition, type)]."""
  lines = re.findall(r"sdy\.sharding_constraint \S+ (.*)", text)
  return [line.removeprefix("<@mesh, ").split("> : ", 1) for line in lines]


def test_the_step_says_where_activations_lie(trained):
  """Rows over the batch's axes; the rest is the compiler's choice."""
  *_, text = trained("adafactor", "eight")
  rows = [c for c in constraints(text) if c[0].startswith(BATCH_ROWS)]
  for kind, others in ((PICTURES, 3), (WORDS, 2)):
    found = {partition for partition, type_ in rows if type_ == kind}
    assert found == {BATCH_ROWS + ", ".join(["{?}"] * others) + "]"}
  # Of each half, forwards and backwards.
  assert sum(kind == PICTURES for _, kind in rows) >= 4


def test_the_step_says_where_parameters_and_gradients_lie(trained):
  """A constraint is one of the gradient too: twice each."""
  *_, text = trained("adafactor", "eight")
  kernel = '[{}, {}, {"fsdp"}, {"tensor"}]'
  found = [p for p, kind in constraints(text) if kind == "tensor<3x3x8x8xf32>"]
  convs = 2 * 2  # in each half, of the two blocks
  assert len([p for p in found if p == kernel]) >= 2 * convs


@pytest.mark.parametrize(
  ("net", "kind", "least"),  # of loops and single ones, blocks and attention
  [(STAGE.net, PICTURES, 2 + 2), (UNET, PICTURES, 4 + 3), (ENCODER, WORDS, 1)],
)
def test_nets_say_so_on_a_mesh_alone(net, kind, least):
  batch = make_batch()
  text = TextEmbedding(np.zeros((BATCH, LENGTH, DIM)), batch["mask"])
  inputs = batch["image"], np.zeros(BATCH), Conditioning(text)
  if net is ENCODER:
    inputs = batch["tokens"], batch["mask"]
  params = jax.eval_shape(net.init, jax.random.key(0), *inputs)
  pinned = lambda inputs: constraints(
    jax.jit(net.apply).lower(params, *inputs).as_text()
  )
  assert pinned(inputs) == []
  with jax.set_mesh(mesh.make_mesh(mesh.MeshShape(2, 2, 2))):
    rows = jax.tree.map(lambda leaf: leaf[:6], inputs)
    assert pinned(rows) == []  # of which four devices have no equal parts
    found = pinned(inputs)
  assert sum(type_ == kind for _, type_ in found) >= least
  assert all(partition.startswith(BATCH_ROWS) for partition, _ in found)
  with jax.set_mesh(mesh.make_mesh(devices=jax.devices()[:1])):
    assert pinned(inputs) == []
