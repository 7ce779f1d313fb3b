"""The training step: what it changes, repeats and averages."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.data import images
from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.parallel import mesh
from imagen_jax.shapes import drawing
from imagen_jax.shapes.scenes import sample_scene
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import Embedder
from imagen_jax.training.step import (
  batch_loss,
  ema_decay,
  encode_text,
  init_state,
  make_train_step,
)

BATCH, SIDE, LENGTH, DIM, SEED = 8, 8, 4, 8, 3
ENCODER = T5Encoder(16, DIM, 2, 1, 4, mlp_dim=16)
EMBEDDER = Embedder(ENCODER)
BLOCK = BlockSpec(
  8,
  num_res_blocks=1,
  self_attention=True,
  text_cross_attention=True,
  num_attention_heads=2,
)
REAL = Stage(
  EfficientUNet(blocks=(BLOCK,), embed_dim=8, text_width=8, norm_groups=4),
  SIDE,
  lowres_size=SIDE // 2,
)


class Small(nn.Module):
  """A net that compiles fast: z, time and text through one layer each."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    text = nn.Dense(3, name="text")(cond.text.tokens.mean(1))
    text += nn.Dense(3, name="time")(time[:, None] / 1000)
    return nn.Dense(3, name="pixels")(z) + text[:, None, None, :]


SMALL = Stage(Small(), SIDE)


@functools.cache
def make_batch():
  """Images of captioned_shapes, with tokens that stand for any caption."""
  rng = np.random.default_rng(0)
  mask = np.arange(LENGTH)[None, :] < rng.integers(1, LENGTH + 1, (BATCH, 1))
  drawn = [drawing.draw(*sample_scene(rng, "train")) for _ in range(BATCH)]
  shrunk = lambda side: np.stack(
    [images.resize(images.to_float(picture), side) for picture in drawn]
  )
  tokens = rng.integers(1, 16, (BATCH, LENGTH), np.int32)
  return {
    "image": shrunk(SIDE),
    "lowres": shrunk(SIDE // 2),
    "tokens": tokens * mask,
    "mask": mask,
  }


def make_weights(stage):
  """(net, text) as arrays of numpy: normals, but for the head's zeros.

  By the shapes alone, for the initialisers take longer to compile.
  """
  ids, mask = jnp.ones((1, LENGTH), jnp.int32), jnp.ones((1, LENGTH), bool)
  init = lambda key: (
    stage.init(key, text_length=LENGTH, text_dim=DIM),
    ENCODER.init(key, ids, mask)["params"],
  )
  rng = np.random.default_rng(0)

  def leaf(path, shape):
    names = [getattr(part, "key", None) for part in path]
    values = rng.normal(size=shape.shape) / np.sqrt(shape.shape[0] + 10)
    values = values * ("dense_out" not in names) + (names[-1] == "scale")
    return values.astype(np.float32)

  shapes = jax.eval_shape(init, jax.random.key(0))
  return jax.tree_util.tree_map_with_path(leaf, shapes)


def make_step(stage, optimizer, decay=0.9, seed=SEED):
  return make_train_step(stage, EMBEDDER, optimizer, decay=decay, seed=seed)


def run(step, state, text, steps):
  """(state, metrics of every step) after some steps on the one batch."""
  history = []
  for _ in range(steps):
    state, metrics = step(state, text, make_batch())
    history.append(jax.tree.map(np.asarray, metrics))
  return state, history


def assert_same(one, two, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, **tolerance), one, two
  )


def changed(one, two):
  """Whether every leaf has moved."""
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), one, two)
  return all(jax.tree.leaves(moved))


# --- With the small net.


@pytest.fixture(scope="module")
def small():
  """(step, net, text, optimizer)."""
  optimizer = optax.adam(1e-2)
  step = jax.jit(make_step(SMALL, optimizer, decay=0.3))
  return step, *make_weights(SMALL), optimizer


def test_ema_decay_warms_up_to_its_value():
  decays = [float(ema_decay(jnp.array(n), 0.999)) for n in (0, 1, 90, 10**6)]
  np.testing.assert_allclose(decays, [0.1, 2 / 11, 0.91, 0.999], rtol=1e-6)


def test_ema_follows_its_formula(small):
  """Before and after decay 0.3 cuts (1 + n) / (10 + n), at n = 3."""
  step, net, text, optimizer = small
  state = init_state(net, optimizer)
  assert_same(state.ema, net, atol=0)
  ema = net
  for n in range(5):
    state, _ = step(state, text, make_batch())
    d = min(0.3, (1 + n) / (10 + n))
    ema = jax.tree.map(
      lambda e, p, d=d: d * e + (1 - d) * np.asarray(p), ema, state.params
    )
    assert_same(state.ema, ema, atol=1e-6)
    assert int(state.step) == n + 1
  assert changed(state.ema, state.params)


def test_text_is_read_and_not_trained(small):
  step, net, text, optimizer = small
  state, metrics = step(init_state(net, optimizer), text, make_batch())
  assert changed(state.params, net)
  # Adam hides a gradient's scale, not that the text went into the loss.
  other = jax.tree.map(lambda leaf: leaf + 0.5, text)
  _, otherwise = step(init_state(net, optimizer), other, make_batch())
  assert abs(metrics["loss"] - otherwise["loss"]) > 1e-4


def test_a_step_draws_from_the_seed_and_its_number_alone(small):
  """Its loss and gradient are those of batch_loss with fold_in(seed, step)."""
  step, net, text, optimizer = small

  @jax.jit
  def expected(net, n):
    key = jax.random.fold_in(jax.random.key(SEED), n)
    draws = SMALL.draw(key, BATCH)
    words = encode_text(EMBEDDER, text, make_batch(), draws.dropped)
    losses = lambda net: batch_loss(SMALL, net, draws, make_batch(), words)[0]
    value, gradient = jax.value_and_grad(lambda net: losses(net).mean())(net)
    return value, optax.tree.norm(gradient)

  state = init_state(net, optimizer)
  for n in range(3):
    loss, norm = expected(state.params, n)
    state, metrics = step(state, text, make_batch())
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    square = sum((leaf**2).sum() for leaf in jax.tree.leaves(state.params))
    np.testing.assert_allclose(metrics["param_norm"], square**0.5, rtol=1e-4)


def test_a_step_that_is_not_finite_changes_nothing(small):
  """But its number and the count; the next one is as if it had not been."""
  step, net, text, optimizer = small
  poisoned = make_batch() | {"image": make_batch()["image"] * np.nan}
  state, _ = step(init_state(net, optimizer), text, make_batch())
  after, metrics = step(state, text, poisoned)
  after, again = step(after, text, poisoned)
  for field in ("params", "ema", "opt_state"):
    assert_same(getattr(after, field), getattr(state, field), atol=0)
  assert int(after.step) == 3 and not np.isfinite(metrics["loss"])
  assert (metrics["skipped_steps"], metrics["skipped_in_a_row"]) == (1, 1)
  assert (again["skipped_steps"], again["skipped_in_a_row"]) == (2, 2)
  after, metrics = step(after, text, make_batch())
  assert (metrics["skipped_steps"], metrics["skipped_in_a_row"]) == (2, 0)
  expected, _ = step(state.replace(step=jnp.int32(3)), text, make_batch())
  assert_same(after.params, expected.params, atol=0)


def test_norms_and_decay_are_of_what_they_say(small):
  step, net, text, optimizer = small
  state, metrics = step(init_state(net, optimizer), text, make_batch())
  moved = jax.tree.map(jnp.subtract, state.params, net)
  norm = optax.tree.norm(moved)
  np.testing.assert_allclose(metrics["update_norm"], norm, rtol=1e-3)
  np.testing.assert_allclose(metrics["ema_decay"], 0.1, rtol=1e-6)
  sums, counts = metrics["logsnr"]
  assert counts.sum() == BATCH
  np.testing.assert_allclose(sums.sum() / BATCH, metrics["loss"], rtol=1e-5)


# --- With a real net.


@pytest.fixture(scope="module")
def real():
  """(net, text, optimizer)."""
  # eps: rounding errors of a gradient near 0 shall not become whole steps.
  return *make_weights(REAL), optax.adam(3e-2, eps=1e-4)


@pytest.fixture(scope="module")
def run_on(real):
  """run_on(devices, state, steps): as the verb train compiles and feeds it."""
  _, text, optimizer = real
  compiled = {}

  def run_on(devices, state, steps):
    devices = mesh.make_mesh(devices=devices)
    everywhere = mesh.replicated(devices)
    spread = mesh.batch_sharding(devices, BATCH)
    if devices not in compiled:
      compiled[devices] = jax.jit(
        make_step(REAL, optimizer), out_shardings=everywhere
      )
    step = lambda state, text, batch: compiled[devices](
      state, text, mesh.to_global(batch, spread, BATCH)
    )
    return run(step, *jax.device_put((state, text), everywhere), steps)

  return run_on


@pytest.fixture(scope="module")
def on_one(real, run_on):
  """(state, metrics) after 3 steps on one device."""
  net, _, optimizer = real
  return run_on(jax.devices()[:1], init_state(net, optimizer), 3)


@pytest.mark.slow  # test_placement.py has a mesh of eight, in parts besides
def test_eight_devices_are_one(real, run_on, on_one):
  net, _, optimizer = real
  state, history = run_on(jax.devices(), init_state(net, optimizer), 3)
  one, expected = on_one
  assert_same(history, expected, atol=1e-4)
  assert_same(state.params, one.params, atol=1e-5)
  assert_same(state.ema, one.ema, atol=1e-5)
  for leaf in jax.tree.leaves(state.params):
    assert len(leaf.sharding.device_set) == 8 and leaf.is_fully_replicated
  moved = state.params["conv_in"]["kernel"] - net["conv_in"]["kernel"]
  assert np.abs(moved).max() > 1e-3


def test_a_resumed_run_repeats_an_undisturbed_one(real, run_on, on_one):
  """1 + 2 steps by way of numpy, bit for bit."""
  net, _, optimizer = real
  one = jax.devices()[:1]
  state, first = run_on(one, init_state(net, optimizer), 1)
  saved = jax.tree.map(np.array, state)
  state, rest = run_on(one, saved, 2)
  expected, history = on_one
  assert_same(state, expected, atol=0)
  assert_same(first + rest, history, atol=0)


def test_the_loss_falls(real, run_on):
  """By the draws of the first steps, heard again after 40 of them."""
  net, _, optimizer = real
  again = lambda params, steps: run_on(
    jax.devices()[:1], init_state(params, optimizer), steps
  )
  state, before = again(net, 40)
  _, after = again(state.params, 5)
  mean = lambda history: np.mean([metrics["loss"] for metrics in history[:5]])
  assert mean(after) < 0.9 * mean(before)
