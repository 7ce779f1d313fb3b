"""The training step: what it changes, repeats and averages."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.diffusion.gaussian import V
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.nets.unet import UNet
from imagen_jax.runtime import mesh
from imagen_jax.stage import Stage
from imagen_jax.training.step import (
  batch_loss,
  ema_decay,
  init_state,
  make_train_step,
)

BATCH, SIDE, LENGTH, DIM, SEED = 8, 8, 4, 8, 3
ENCODER = T5Encoder(
  vocab_size=16,
  emb_dim=DIM,
  num_heads=2,
  num_encoder_layers=1,
  head_dim=4,
  mlp_dim=16,
)
REAL = Stage(
  UNet(
    image_size=SIDE,
    embed_dim=8,
    channel_mult=(1,),
    num_res_blocks=1,
    attn_resolutions=(SIDE,),
    text_cross_attn_res=(SIDE,),
    per_head_channels=8,
    text_width=8,
    norm_groups=4,
  ),
  SIDE,
  prediction=V,
  loss_space=V,
)


class Small(nn.Module):
  """A net that compiles fast: z, time and text through one layer each."""

  stride: int = 1

  @nn.compact
  def __call__(self, z, time, cond):
    text = nn.Dense(3, name="text")(cond.text.tokens.mean(1))
    text += nn.Dense(3, name="time")(time[:, None] / 1000)
    return nn.Dense(3, name="pixels")(z) + text[:, None, None, :]


SMALL = Stage(Small(), SIDE)


def make_batch():
  rng = np.random.default_rng(0)
  mask = np.arange(LENGTH)[None, :] < rng.integers(1, LENGTH + 1, (BATCH, 1))
  image = rng.uniform(-1, 1, (BATCH, SIDE, SIDE, 3)).astype(np.float32)
  tokens = rng.integers(1, 16, (BATCH, LENGTH), np.int32)
  return {"image": image, "tokens": tokens * mask, "mask": mask}


def make_weights(stage):
  """(net, text): initial weights as arrays of numpy."""
  ids, mask = jnp.ones((1, LENGTH), jnp.int32), jnp.ones((1, LENGTH), bool)
  init = lambda key: (
    stage.init(key, text_length=LENGTH, text_dim=DIM),
    ENCODER.init(key, ids, mask)["params"],
  )
  return jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(0)))


def make_step(stage, optimizer, decay=0.9, seed=SEED):
  return make_train_step(stage, ENCODER, optimizer, decay=decay, seed=seed)


def run(step, state, text, steps):
  """(state, metrics of every step) after some steps on the one batch."""
  history = []
  for _ in range(steps):
    state, metrics = step(state, text, make_batch())
    history.append(jax.tree.map(float, metrics))
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
def weights():
  return make_weights(SMALL)


@pytest.fixture(scope="module")
def small(weights):
  """(step, net, text, optimizer)."""
  optimizer = optax.adam(1e-2)
  return jax.jit(make_step(SMALL, optimizer)), *weights, optimizer


def test_ema_decay_warms_up_to_its_value():
  decays = [float(ema_decay(jnp.array(n), 0.999)) for n in (0, 1, 90, 10**6)]
  np.testing.assert_allclose(decays, [0.1, 2 / 11, 0.91, 0.999], rtol=1e-6)


def test_ema_follows_its_formula(small):
  """Before and after decay 0.3 cuts (1 + n) / (10 + n), at n = 2."""
  _, net, text, optimizer = small
  step = jax.jit(make_step(SMALL, optimizer, decay=0.3))
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
  _, net, text, _ = small

  @jax.jit
  def expected(n):
    key = jax.random.fold_in(jax.random.key(SEED), n)
    loss = lambda net: batch_loss(SMALL, ENCODER, net, text, key, make_batch())[
      0
    ].mean()
    value, gradient = jax.value_and_grad(loss)(net)
    return value, optax.tree.norm(gradient)

  still = optax.sgd(0.0)
  step = jax.jit(make_step(SMALL, still))
  state, history = run(step, init_state(net, still), text, 3)
  assert_same(state.params, net, atol=0)
  for n, metrics in enumerate(history):
    loss, norm = expected(n)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    leaves = jax.tree.leaves(net)
    np.testing.assert_allclose(
      metrics["param_norm"] ** 2,
      sum((leaf**2).sum() for leaf in leaves),
      rtol=1e-4,
    )
  assert len({metrics["loss"] for metrics in history}) == 3


# --- With a real net.


@pytest.fixture(scope="module")
def real():
  """(net, text, optimizer)."""
  optimizer = optax.adam(3e-3)
  return *make_weights(REAL), optimizer


@pytest.fixture(scope="module")
def run_on(real):
  """run_on(devices, state, steps): as the verb train compiles and feeds it."""
  _, text, optimizer = real
  compiled = {}

  def run_on(devices, state, steps):
    devices = mesh.make_mesh(devices)
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


def test_eight_devices_are_one(real, run_on, on_one):
  net, _, optimizer = real
  state, history = run_on(jax.devices(), init_state(net, optimizer), 3)
  one, expected = on_one
  assert_same(history, expected, atol=1e-4)
  assert_same(state.params, one.params, atol=1e-5)
  assert_same(state.ema, one.ema, atol=1e-5)
  for leaf in jax.tree.leaves(state.params):
    assert len(leaf.sharding.device_set) == 8 and leaf.is_fully_replicated
  assert changed(state.params, net)


def test_a_resumed_run_repeats_an_undisturbed_one(real, run_on, on_one):
  """1 + 2 steps by way of numpy, bit for bit."""
  net, _, optimizer = real
  one = jax.devices()[:1]
  state, first = run_on(one, init_state(net, optimizer), 1)
  saved = jax.tree.map(np.array, state)
  state, rest = run_on(one, saved, 2)
  expected, history = on_one
  assert_same(state, expected, atol=0)
  assert first + rest == history


def test_the_loss_falls(real, run_on):
  """On one small batch; each step draws other times and noise."""
  net, _, optimizer = real
  _, history = run_on(jax.devices()[:1], init_state(net, optimizer), 30)
  losses = [metrics["loss"] for metrics in history]
  assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
