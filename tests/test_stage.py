"""A stage's checks and its loss, with nets whose answers are known."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.gaussian import (
  EPS,
  V,
  X,
  noise,
  q_sample,
  v_from_x_eps,
  x_from_eps,
)
from imagen_jax.diffusion.schedules import (
  CosineSchedule,
  DiscreteCosineSchedule,
  LinearSchedule,
)
from imagen_jax.diffusion.variational import variational_bound
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import TextEmbedding

KEY = jax.random.key(0)
BATCH, LENGTH, DIM = 512, 5, 7


class Fake(nn.Module):
  """A net that reports its inputs and answers fn(z, time, cond)."""

  fn: Callable
  see: Callable = lambda inputs: None
  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    self.see((z, time, cond))
    return self.fn(z, time, cond)


def zero(z, time, cond):
  return jnp.zeros_like(z)


def text_level(z, time, cond):
  """The mean of an example's tokens, everywhere in its image."""
  return jnp.zeros_like(z) + cond.text.tokens.mean((1, 2))[:, None, None, None]


def make_text(batch, value=1.0):
  tokens = value + 0.1 * jax.random.normal(jax.random.key(1), (LENGTH, DIM))
  tokens = jnp.broadcast_to(tokens, (batch, LENGTH, DIM))
  return TextEmbedding(tokens, jnp.ones((batch, LENGTH), bool))


# --- The checks.


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"size": 0}, "size is 0, expected at least 1"),
    ({"size": 16, "lowres_size": 0}, "lowres_size is 0, expected at least 1"),
    ({"size": 16, "lowres_size": -8}, "lowres_size is -8, expected at least 1"),
    ({"size": 16, "text_drop": 10.0}, "text_drop is 10.0, expected 0 to 1"),
    ({"size": 12}, "size is 12, expected a multiple of 8"),
    ({"size": 16, "crop_size": 4}, "crop_size is 4, expected a multiple of 8"),
    (
      {"size": 16, "crop_size": 24},
      "crop_size is 24, expected at most size 16",
    ),
    ({"size": 16, "max_aug_level": 1.1}, "max_aug_level is 1.1, expected 0 to"),
    ({"size": 16, "max_aug_level": -0.1}, "max_aug_level is -0.1, expected"),
    ({"size": 16, "lowres_size": 5}, "size is 16, .* lowres_size, 5"),
    ({"size": 16, "lowres_size": 32}, "size is 16, .* lowres_size, 32"),
    (
      {"size": 48, "lowres_size": 4, "crop_size": 16},
      "crop_size is 16, .* factor, 12",
    ),
  ],
)
def test_sizes_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    Stage(Fake(zero, stride=8), **fields)


def test_channels_that_are_neither():
  with pytest.raises(ValueError, match="out_channels is 4, expected 3, or 6"):
    Stage(Fake(zero, out_channels=4), 16)
  assert Stage(Fake(zero, out_channels=6), 16).learns_variance
  assert not Stage(Fake(zero), 16).learns_variance


def test_sizes_that_fit():
  stage = Stage(Fake(zero, stride=8), size=64, lowres_size=16, crop_size=32)
  assert (stage.factor, stage.train_size) == (4, 32)
  stage = Stage(Fake(zero, stride=8), size=64)
  assert (stage.factor, stage.train_size) == (1, 64)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"steps": 0}, "steps is 0, expected at least 1"),
    ({"guidance": float("nan")}, "guidance is nan, expected a number"),
    ({"aug_level": 1.1}, "aug_level is 1.1, expected 0 to 1"),
    ({"aug_level": -0.1}, "aug_level is -0.1, expected 0 to 1"),
  ],
)
def test_sampling_out_of_range(fields, message):
  with pytest.raises(ValueError, match=message):
    Sampling(**fields)


# --- The loss.


@pytest.fixture(scope="module")
def zero_loss():
  """(loss, logsnr) of a net that predicts 0 for zeros, and what it saw."""
  seen = []
  stage = Stage(Fake(zero, seen.append), size=16, lowres_size=8)
  x, lowres = (jnp.zeros((BATCH, side, side, 3)) for side in (16, 8))
  return stage.loss(
    {}, stage.draw(KEY, len(x)), x, make_text(BATCH), lowres
  ), seen[0]


def test_the_loss_of_zero_is_the_noise(zero_loss):
  """x = 0, so z = sigma eps: an example's loss is the mean of its eps^2."""
  (loss, logsnr), (z, *_) = zero_loss
  assert loss.shape == logsnr.shape == (BATCH,)
  var = 1 / (1 + np.exp(logsnr))
  np.testing.assert_allclose(loss, np.mean(z**2, (1, 2, 3)) / var, rtol=1e-4)
  assert abs(loss.mean() - 1) < 4 * np.sqrt(2 / (16 * 16 * 3) / BATCH)


def test_the_net_hears_time_from_0_to_1000(zero_loss):
  (_, logsnr), (_, time, _) = zero_loss
  np.testing.assert_allclose(logsnr, CosineSchedule()(time / 1000), atol=1e-2)
  assert 0 <= time.min() < 20 and 980 < time.max() <= 1000
  quarters, _ = np.histogram(time, 4, (0, 1000))
  assert np.abs(quarters - BATCH / 4).max() < 4 * np.sqrt(BATCH * 3 / 16)


def test_a_tenth_of_the_texts_is_dropped(zero_loss):
  _, (_, _, cond) = zero_loss
  dropped = np.asarray((cond.text.tokens == 0).all((1, 2)))
  assert abs(dropped.mean() - 0.1) < 4 * np.sqrt(0.09 / BATCH)
  real = np.asarray(cond.text.mask.sum(1))
  np.testing.assert_array_equal(real, np.where(dropped, 1, LENGTH))


def test_the_low_res_is_noised_by_the_level_the_net_hears(zero_loss):
  """By every example's own level, at the low resolution."""
  _, (_, time, cond) = zero_loss
  level = np.asarray(cond.aug_level)
  assert cond.lowres.shape == (BATCH, 8, 8, 3)
  std = np.asarray(cond.lowres).std((1, 2, 3))
  np.testing.assert_allclose(std, np.sin(np.pi / 2 * level), rtol=0.25)
  quarters, _ = np.histogram(level, 4, (0, 1))
  assert np.abs(quarters - BATCH / 4).max() < 4 * np.sqrt(BATCH * 3 / 16)
  # Drawn apart from the time, as is the noise from that of z.
  assert abs(np.corrcoef(level, time)[0, 1]) < 4 / np.sqrt(BATCH)


def test_the_augmentation_levels_end_where_told():
  seen = []
  stage = Stage(
    Fake(zero, seen.append), size=8, lowres_size=4, max_aug_level=0.3
  )
  x, lowres = (jnp.zeros((BATCH, side, side, 3)) for side in (8, 4))
  stage.loss({}, stage.draw(KEY, len(x)), x, make_text(BATCH), lowres)
  level = np.asarray(seen[0][2].aug_level)
  quarters, _ = np.histogram(level, 4, (0, 0.3))
  assert quarters.sum() == BATCH
  assert np.abs(quarters - BATCH / 4).max() < 4 * np.sqrt(BATCH * 3 / 16)


def test_the_augmentation_has_a_schedule_of_its_own():
  stage = Stage(Fake(zero), 8, lowres_size=4, aug_schedule=LinearSchedule())
  level = jnp.full(BATCH, 0.3)
  keys, lowres = jax.random.split(KEY, BATCH), jnp.zeros((BATCH, 4, 4, 3))
  cond = stage.condition(keys, make_text(BATCH), lowres, level)
  sigma = np.sqrt(jax.nn.sigmoid(-LinearSchedule()(0.3)))
  np.testing.assert_allclose(cond.lowres.std(), sigma, rtol=0.02)
  assert abs(sigma - np.sin(np.pi / 2 * 0.3)) > 0.1  # the cosine schedule's


def test_a_base_stage_has_no_low_res():
  seen = []
  stage = Stage(Fake(zero, seen.append), size=4)
  stage.loss({}, stage.draw(KEY, 8), jnp.zeros((8, 4, 4, 3)), make_text(8))
  cond = seen[0][2]
  assert cond.lowres is None and cond.aug_level is None


def test_the_linear_schedule_has_its_own_time():
  stage = Stage(Fake(zero), size=4, schedule=LinearSchedule())
  t = jnp.linspace(0.01, 1.0, 7)
  np.testing.assert_allclose(stage.time(stage.schedule(t)), 1000 * t, rtol=1e-4)


@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit])
def test_the_steps_of_the_table_are_whole_to_the_bit(compiled):
  stage = Stage(Fake(zero), size=4, schedule=DiscreteCosineSchedule())
  steps = np.arange(1000)
  time = compiled(lambda t: stage.time(stage.schedule(t)))(steps / 1000)
  np.testing.assert_array_equal(time, steps)


@pytest.fixture(scope="module")
def equivalent_losses():
  """Of one guess of eps, given as eps, x or v, by (prediction, loss_space)."""
  schedule = CosineSchedule(-6.0, 6.0)
  guess = lambda z, time: jnp.sin(3 * z) + time[:, None, None, None] / 1000
  known = lambda time: schedule(time / 1000)

  def as_x(z, time, cond):
    return x_from_eps(guess(z, time), z, known(time))

  def as_v(z, time, cond):
    return v_from_x_eps(as_x(z, time, cond), guess(z, time), known(time))

  nets = {
    EPS: Fake(lambda z, time, _: guess(z, time)),
    X: Fake(as_x),
    V: Fake(as_v),
  }
  x = jax.random.uniform(jax.random.key(2), (8, 4, 4, 3), minval=-1)

  def loss(prediction, space):
    stage = Stage(
      nets[prediction], 4, schedule, prediction=prediction, loss_space=space
    )
    return stage.loss({}, stage.draw(KEY, len(x)), x, make_text(8))

  return {(p, s): loss(p, s) for p in nets for s in nets}


@pytest.mark.parametrize("space", [EPS, X, V], ids=lambda p: p.name)
def test_the_prediction_does_not_change_the_loss(equivalent_losses, space):
  expected, _ = equivalent_losses[EPS, space]
  for prediction in (X, V):
    loss, _ = equivalent_losses[prediction, space]
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_loss_spaces_differ_by_their_weights(equivalent_losses):
  """|eps|^2 = alpha^2 |v|^2 = e^logsnr |x|^2, of one and the same error."""
  in_v, logsnr = equivalent_losses[V, V]
  in_eps, _ = equivalent_losses[V, EPS]
  in_x, _ = equivalent_losses[V, X]
  np.testing.assert_allclose(in_eps, jax.nn.sigmoid(logsnr) * in_v, rtol=1e-4)
  np.testing.assert_allclose(in_eps, jnp.exp(logsnr) * in_x, rtol=1e-4)


def test_the_bound_on_the_variance_teaches_the_variance_alone():
  """Of a net that learns it, the loss is the sum, but not the gradients."""
  x = jax.random.uniform(jax.random.key(2), (8, 4, 4, 3), minval=-1)
  outs = 0.3 * jax.random.normal(KEY, (2, *x.shape))
  plain = Stage(Fake(lambda z, time, cond: z + outs[0]), 4)
  draws = plain.draw(KEY, len(x))

  def loss(out, v):
    fn = lambda z, time, cond: jnp.concatenate([z + out, v], -1)
    stage = Stage(Fake(fn, out_channels=6), 4)
    return stage.loss({}, draws, x, make_text(8))[0]

  whole, squared = loss(*outs), plain.loss({}, draws, x, make_text(8))[0]
  logsnr = plain.schedule(draws.time)
  z_t = q_sample(x, noise(draws.eps_keys, x.shape[1:]), logsnr)
  bound = variational_bound(
    x, z_t, x_from_eps(z_t + outs[0], z_t, logsnr), (outs[1] + 1) / 2,
    time=plain.time(logsnr), schedule=plain.schedule,
  )  # fmt: skip
  np.testing.assert_allclose(whole, squared + bound, rtol=1e-5)
  assert (bound > 1e-4).all()

  of_out, of_v = jax.grad(lambda *o: loss(*o).sum(), (0, 1))(*outs)
  eps = noise(draws.eps_keys, x.shape[1:])
  expected = 2 * (z_t + outs[0] - eps) / x[0].size
  np.testing.assert_allclose(of_out, expected, atol=1e-6)
  assert (np.abs(of_v).max((1, 2, 3)) > 0).all()


@pytest.mark.parametrize(("text_drop", "depends"), [(1.0, False), (0.0, True)])
def test_text_drop_decides_whether_the_text_matters(text_drop, depends):
  stage = Stage(Fake(text_level), size=4, text_drop=text_drop)
  x = jnp.zeros((8, 4, 4, 3))
  one, _ = stage.loss({}, stage.draw(KEY, len(x)), x, make_text(8, 1.0))
  two, _ = stage.loss({}, stage.draw(KEY, len(x)), x, make_text(8, -2.0))
  assert (np.abs(one - two) > 1e-3).all() == depends
  assert (np.abs(one - two) == 0).all() != depends
