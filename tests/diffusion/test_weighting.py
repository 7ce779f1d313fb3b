"""Weights of the loss and draws of its times against their closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import expit

from imagen_jax.diffusion.gaussian import EPS, V, X
from imagen_jax.diffusion.schedules import CosineSchedule, LinearSchedule
from imagen_jax.diffusion.weighting import (
  MinSNR,
  Sigmoid,
  Uniform,
  even_times,
  independent_times,
)

LOGSNR = np.linspace(-9, 9, 37)
SNR = np.exp(LOGSNR)
SLOPE = -2 * np.pi * np.cosh(LOGSNR / 2)  # of the cosine schedule
SPACES = {"eps": EPS, "x": X, "v": V}
WEIGHTINGS = (MinSNR(), MinSNR(gamma=0.3), Sigmoid(), Sigmoid(bias=-1.0))


def weights(weighting, space):
  logsnr = jnp.asarray(LOGSNR, jnp.float32)
  out = weighting(logsnr, space=SPACES[space], schedule=CosineSchedule())
  assert out.shape == logsnr.shape and out.dtype == jnp.float32
  return np.asarray(out, np.float64)


@pytest.mark.parametrize("space", SPACES)
def test_uniform_weights_are_one_to_the_bit(space):
  np.testing.assert_array_equal(weights(Uniform(), space), 1)


@pytest.mark.parametrize("gamma", [0.3, 5.0])
def test_min_snr_in_each_space(gamma):
  """The three forms of Hang et al. 2023."""
  least = np.minimum(SNR, gamma)
  expected = {"x": least, "eps": least / SNR, "v": least / (SNR + 1)}
  for space, values in expected.items():
    out = weights(MinSNR(gamma), space)
    np.testing.assert_allclose(out, values, rtol=1e-5)


@pytest.mark.parametrize("bias", [-1.0, 2.0])
def test_sigmoid_weighs_the_error_of_eps(bias):
  expected = -SLOPE * expit(bias - LOGSNR)
  out = weights(Sigmoid(bias), "eps")
  np.testing.assert_allclose(out, expected, rtol=1e-4)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_the_spaces_agree(weighting):
  """|eps|^2 = SNR |x|^2 and |v|^2 = (1 + 1 / SNR) |eps|^2, of one error."""
  of_eps = weights(weighting, "eps")
  np.testing.assert_allclose(weights(weighting, "x"), of_eps * SNR, rtol=1e-5)
  of_v = of_eps / (1 + 1 / SNR)
  np.testing.assert_allclose(weights(weighting, "v"), of_v, rtol=1e-5)


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()])
def test_sigmoid_is_an_integral_over_logsnr(schedule):
  """Of w(t) uniformly in t, whatever the schedule between its two ends.

  The integral of sigmoid(b - l) from l_0 to l_1 is the difference of
  -log(1 + e^(b - l)).
  """
  bias, low, high = 2.0, -8.0, 6.0
  edges = np.asarray(schedule.inverse(jnp.array([high, low])), np.float64)
  step = (edges[1] - edges[0]) / 20_000
  t = jnp.asarray(edges[0] + step * (np.arange(20_000) + 0.5), jnp.float32)
  weight = Sigmoid(bias)(schedule(t), space=EPS, schedule=schedule)
  total = weight.mean() * 20_000 * step
  expected = np.logaddexp(0, bias - low) - np.logaddexp(0, bias - high)
  np.testing.assert_allclose(total, expected, rtol=2e-3)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
@pytest.mark.parametrize("space", ["eps", "x", "v"])
def test_weights_are_finite_wherever_a_schedule_goes(weighting, space):
  t = jnp.linspace(0.0, 1.0, 257)
  for schedule in (CosineSchedule(), LinearSchedule()):
    out = weighting(schedule(t), space=SPACES[space], schedule=schedule)
    assert jnp.isfinite(out).all() and (out >= 0).all()


@pytest.mark.parametrize(
  ("make", "said"),
  [
    (lambda: MinSNR(gamma=0.0), "gamma is 0.0, expected more than 0"),
    (lambda: MinSNR(gamma=float("inf")), "gamma is inf, expected more than 0"),
    (lambda: Sigmoid(bias=float("nan")), "bias is nan, expected a number"),
  ],
)
def test_settings_out_of_range(make, said):
  with pytest.raises(ValueError, match=said):
    make()


# --- The draws of times.


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_even_times_have_one_in_every_part(batch):
  """[0, 1) in `batch` equal parts from the first time on: one time in each."""
  times = np.asarray(even_times(jax.random.key(3), batch), np.float64)
  assert times.shape == (batch,) and (times >= 0).all() and (times < 1).all()
  gaps = np.diff(np.sort(times), append=times.min() + 1)
  np.testing.assert_allclose(gaps, 1 / batch, atol=1e-6)


@pytest.mark.parametrize("times", [independent_times, even_times])
def test_each_time_alone_is_uniform(times):
  keys = jax.random.split(jax.random.key(0), 4_000)
  drawn = np.asarray(jax.vmap(lambda key: times(key, 8))(keys))
  for column in drawn.T:
    counts, _ = np.histogram(column, 4, (0, 1))
    assert np.abs(counts - 1_000).max() < 4 * np.sqrt(4_000 * 3 / 16)
