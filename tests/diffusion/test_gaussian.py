"""The process against float64 Bayes and Monte Carlo; conversions; losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import gaussian
from imagen_jax.diffusion.gaussian import EPS, V, X

# (logsnr_s, logsnr_t): far apart, at both clips, and so close that 1 - e^d
# cancels unless it goes through expm1.
PAIRS = [
  (2.0, -1.0),
  (20.0, -20.0),
  (20.0, 12.5),
  (-12.5, -20.0),
  (1.0, 1 - 2**-12),
]
LOGSNRS = np.linspace(-20, 20, 41)


def reference(logsnr):
  """Float64 alpha, sigma."""
  logsnr = np.asarray(logsnr, np.float64)
  return np.exp(-np.logaddexp(0, -logsnr) / 2), np.exp(
    -np.logaddexp(0, logsnr) / 2
  )


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("logsnr_s, logsnr_t", PAIRS)
def test_transition_after_forward_is_forward(logsnr_s, logsnr_t):
  (alpha_s, sigma_s), (alpha_t, sigma_t) = map(reference, (logsnr_s, logsnr_t))
  levels = {"logsnr_s": logsnr_s, "logsnr_t": logsnr_t}
  ratio, var = gaussian.transition(jnp.ones((1, 1)), **levels)
  ratio, var = np.float64(ratio), np.float64(var)
  np.testing.assert_allclose(ratio * alpha_s, alpha_t, rtol=1e-5)
  total = ratio**2 * sigma_s**2 + var
  np.testing.assert_allclose(total, sigma_t**2, rtol=1e-5)
  # Alone, too: the sum barely feels it when s is almost t or almost clean.
  alone = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
  np.testing.assert_allclose(var, alone, rtol=1e-5)


def test_transition_after_forward_is_forward_by_monte_carlo():
  levels = {"logsnr_s": 2.0, "logsnr_t": -1.0}
  eps_s, eps = normal(2, 1, 400_000)
  x = jnp.full((1, 400_000), 0.7)
  z_s = gaussian.q_sample(x, eps_s, 2.0)
  mean, var = gaussian.transition(z_s, **levels)
  z_t = np.asarray(mean + jnp.sqrt(var) * eps)
  alpha_t, sigma_t = reference(-1.0)
  np.testing.assert_allclose(z_t.mean(), alpha_t * 0.7, atol=6e-3)
  # .7311; adding the variances would give .8763.
  np.testing.assert_allclose(z_t.var(), sigma_t**2, atol=6e-3)
  # The noises of z_t and z_s are not independent: that is why it subtracts.
  eps_t = gaussian.eps_from_x(x, z_t, -1.0)
  correlation = np.corrcoef(np.ravel(eps_t), np.ravel(eps_s))[0, 1]
  np.testing.assert_allclose(correlation, 0.2231, atol=6e-3)


@pytest.mark.parametrize("logsnr_s, logsnr_t", PAIRS)
def test_posterior_is_bayes(logsnr_s, logsnr_t):
  (alpha_s, sigma_s), (alpha_t, sigma_t) = map(reference, (logsnr_s, logsnr_t))
  x, eps = normal(2, 5, 4)
  z_t = gaussian.q_sample(x, eps, logsnr_t)
  levels = {"logsnr_s": logsnr_s, "logsnr_t": logsnr_t}
  mean, var = gaussian.posterior(z_t, x, **levels)
  # N(z_s; alpha_s x, sigma_s^2) N(z_t; r z_s, noise), completed to a square.
  r = alpha_t / alpha_s
  noise = sigma_t**2 - r**2 * sigma_s**2
  precision = 1 / sigma_s**2 + r**2 / noise
  expected = (
    alpha_s * x / sigma_s**2 + r * np.float64(z_t) / noise
  ) / precision
  np.testing.assert_allclose(var, np.full((1, 1), 1 / precision), rtol=1e-5)
  np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logsnr_s, logsnr_t", PAIRS)
def test_log_variances(logsnr_s, logsnr_t):
  levels = {"logsnr_s": logsnr_s, "logsnr_t": logsnr_t}
  one = jnp.ones((1, 1))
  log_var_s, log_var_t = gaussian.log_variances(**levels)
  _, var_s = gaussian.posterior(one, one, **levels)
  _, var_t = gaussian.transition(one, **levels)
  np.testing.assert_allclose(np.exp(log_var_s), var_s[0, 0], rtol=1e-5)
  np.testing.assert_allclose(np.exp(log_var_t), var_t[0, 0], rtol=1e-5)


def test_log_variances_of_equal_levels_are_finite():
  assert np.isfinite(gaussian.log_variances(logsnr_s=9.0, logsnr_t=9.0)).all()


def test_levels_are_per_example_where_batch_equals_channels():
  x, eps = normal(2, 3, 2, 2, 3)
  levels = {
    "logsnr_s": jnp.array([3.0, 1, 0]),
    "logsnr_t": jnp.array([1.0, -2, -5]),
  }
  raise_together = [
    gaussian.q_sample(x, eps, levels["logsnr_t"]),
    gaussian.posterior(eps, x, **levels)[0],
    gaussian.transition(x, **levels)[0],
  ]
  for i in range(3):
    own = {name: level[i] for name, level in levels.items()}
    alone = [
      gaussian.q_sample(x[i], eps[i], own["logsnr_t"]),
      gaussian.posterior(eps[i], x[i], **own)[0],
      gaussian.transition(x[i], **own)[0],
    ]
    for a, b in zip(raise_together, alone, strict=True):
      np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-7)


def test_forward_over_the_range():
  x, eps = normal(2, 41, 9)
  alpha, sigma = reference(LOGSNRS[:, None])
  z = gaussian.q_sample(x, eps, LOGSNRS)
  np.testing.assert_allclose(z, alpha * x + sigma * eps, rtol=1e-5, atol=1e-6)


def test_round_trips_through_v_are_exact_over_the_range():
  x, eps = normal(2, 41, 9)
  z = gaussian.q_sample(x, eps, LOGSNRS)
  v = gaussian.v_from_x_eps(x, eps, LOGSNRS)
  # (z, v) is (x, eps) rotated: well-conditioned everywhere.
  np.testing.assert_allclose(gaussian.x_from_v(v, z, LOGSNRS), x, atol=2e-6)
  np.testing.assert_allclose(gaussian.eps_from_v(v, z, LOGSNRS), eps, atol=2e-6)


def test_round_trips_that_divide_keep_to_float32s_bound():
  """Dividing by alpha or sigma magnifies the rounding of z, and no more."""
  x, eps = normal(2, 41, 9)
  alpha, sigma = reference(LOGSNRS[:, None])
  z = np.float32(alpha * x + sigma * eps)
  rounding = 8 * np.finfo(np.float32).eps * (abs(alpha * x) + abs(sigma * eps))
  error_x = abs(gaussian.x_from_eps(eps, z, LOGSNRS) - x)
  error_eps = abs(gaussian.eps_from_x(x, z, LOGSNRS) - eps)
  assert (error_x <= rounding / alpha).all()
  assert (error_eps <= rounding / sigma).all()
  assert error_x.max() < 0.1 and error_eps.max() < 0.1


@pytest.mark.parametrize("prediction", [EPS, X, V], ids=lambda p: p.name)
def test_to_x_undoes_target(prediction):
  x, eps = normal(2, 9, 6)
  logsnr = np.linspace(-8, 8, 9)
  z = gaussian.q_sample(x, eps, logsnr)
  out = prediction.target(x, eps, logsnr)
  np.testing.assert_allclose(prediction.to_x(out, z, logsnr), x, atol=1e-4)


@pytest.mark.parametrize("space", [EPS, X, V], ids=lambda p: p.name)
@pytest.mark.parametrize("prediction", [EPS, X, V], ids=lambda p: p.name)
def test_loss_is_the_squared_error_in_its_space(prediction, space):
  x, eps, x_hat = np.float64(normal(3, 9, 4, 3))
  logsnr = np.linspace(-8, 8, 9)
  alpha, sigma = reference(logsnr[:, None, None])
  eps_hat = (alpha * x + sigma * eps - alpha * x_hat) / sigma  # The same z.
  forms = {
    "eps": (eps, eps_hat),
    "x": (x, x_hat),
    "v": (alpha * eps - sigma * x, alpha * eps_hat - sigma * x_hat),
  }
  truth, guess = forms[space.name]
  expected = np.mean((truth - guess) ** 2, axis=(1, 2))
  out = jnp.float32(forms[prediction.name][1])
  x, eps = jnp.float32(x), jnp.float32(eps)
  loss = gaussian.squared_error(prediction, out, x, eps, logsnr, space)
  assert loss.shape == (9,) and loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_default_loss_is_uniform_on_eps():
  out, x, eps = normal(3, 9, 4)
  logsnr = np.linspace(-20, 20, 9)
  mse = np.mean((out - eps) ** 2, axis=1)
  loss = gaussian.squared_error(EPS, out, x, eps, logsnr)
  np.testing.assert_allclose(loss, mse, rtol=1e-5)
  # So the error of x weighs e^logsnr: w(logsnr) is not kept as it was.
  mse = np.mean((out - x) ** 2, axis=1)
  loss = gaussian.squared_error(X, out, x, eps, logsnr)
  np.testing.assert_allclose(loss, mse * np.exp(logsnr), rtol=1e-4)


@pytest.mark.parametrize("prediction", [EPS, X, V], ids=lambda p: p.name)
def test_loss_vanishes_at_the_target_only(prediction):
  x, eps = normal(2, 4, 5)
  logsnr = jnp.array([-20.0, -1, 1, 20])
  target = prediction.target(x, eps, logsnr)
  loss = gaussian.squared_error(prediction, target, x, eps, logsnr)
  np.testing.assert_array_equal(loss, 0)
  loss = gaussian.squared_error(prediction, target + 1, x, eps, logsnr)
  assert (np.asarray(loss) > 0).all() and np.isfinite(loss).all()


def test_predictions_are_hashable_settings():
  assert len({EPS, X, V, EPS}) == 3


def test_half_precision_goes_in_float32_comes_out():
  x = jnp.ones((2, 3), jnp.bfloat16)
  logsnr = jnp.zeros(2, jnp.bfloat16)
  levels = {"logsnr_s": logsnr + 1, "logsnr_t": logsnr}
  results = [
    gaussian.q_sample(x, x, logsnr),
    gaussian.transition(x, **levels),
    gaussian.posterior(x, x, **levels),
    [p.target(x, x, logsnr) for p in (EPS, X, V)],
    [p.to_x(x, x, logsnr) for p in (EPS, X, V)],
    [p.error_ratio(logsnr) for p in (EPS, X, V)],
    gaussian.squared_error(EPS, x, x, x, logsnr),
  ]
  assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {
    jnp.dtype("float32")
  }


def test_a_level_must_be_scalar_or_per_example():
  with pytest.raises(AssertionError, match=r"scalar or \[B\]"):
    gaussian.q_sample(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 1)))


def test_noise_of_an_example_is_its_keys_alone():
  keys = jax.random.split(jax.random.key(0), 3)
  noise = gaussian.noise(keys, (2, 5))
  other = gaussian.noise(keys[jnp.array([2, 1, 2])], (2, 5))
  np.testing.assert_array_equal(noise[1:], other[1:])
  np.testing.assert_array_equal(other[0], other[2])
  assert np.unique(noise).size == noise.size
