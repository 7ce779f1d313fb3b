"""The variational bound, by numerical integration and by a float64 copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from imagen_jax.diffusion import gaussian, schedules, variational

TABLE = schedules.DiscreteCosineSchedule()
COSINE = schedules.CosineSchedule()
LINEAR = schedules.LinearSchedule()
SHAPE = (2, 2, 3)


@pytest.mark.parametrize(
  ("mean_1", "var_1", "mean_2", "var_2"),
  [(0.3, 0.5, -0.4, 2.0), (0.3, 2.0, 0.3, 0.5), (1.0, 0.1, 1.0, 0.1)],
)
def test_kl_is_the_integral(mean_1, var_1, mean_2, var_2):
  p = scipy.stats.norm(mean_1, np.sqrt(var_1))
  q = scipy.stats.norm(mean_2, np.sqrt(var_2))
  integrand = lambda z: p.pdf(z) * (p.logpdf(z) - q.logpdf(z))
  expected, _ = scipy.integrate.quad(integrand, -15, 15)
  kl = variational.gaussian_kl(mean_1, np.log(var_1), mean_2, np.log(var_2))
  np.testing.assert_allclose(kl, expected, atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.05), (-0.98, 0.2)])
def test_the_levels_of_a_pixel_share_all_of_it(mean, std):
  levels = np.linspace(-1, 1, 256)
  log_p = variational.log_likelihood(levels, mean, 2 * np.log(std))
  np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-4)
  middle = levels[100:156]
  density = scipy.stats.norm(mean, std).pdf(middle) * 2 / 255
  np.testing.assert_allclose(np.exp(log_p[100:156]), density, atol=1e-4)


def case(schedule, time, seed=0):
  """(x, z_t, x_hat, gamma) of a net that is wrong by a little."""
  rng = np.random.default_rng(seed)
  shape = (len(time), *SHAPE)
  x = rng.integers(0, 256, shape) / 127.5 - 1
  eps, error, v = rng.normal(size=(3, *shape))
  logsnr = schedule(jnp.array(time) / 1000)
  z_t = gaussian.q_sample(np.float32(x), eps, logsnr)
  x_hat = gaussian.x_from_eps(np.float32(eps + 0.3 * error), z_t, logsnr)
  return np.float32(x), z_t, x_hat, np.float32((np.tanh(v) + 1) / 2)


def reference(alpha_bar, k, x, z_t, x_hat, gamma):
  """Of step k of a table of products, with betas, in float64 (Eqs. 4-6)."""
  before = alpha_bar[k - 1] if k else 1.0
  beta = 1 - alpha_bar[k] / before
  tilde = lambda k: (
    (1 - alpha_bar[k - 1])
    / (1 - alpha_bar[k])
    * (1 - alpha_bar[k] / alpha_bar[k - 1])
  )
  small = tilde(k) if k else tilde(1)
  var = np.exp(gamma * np.log(beta) + (1 - gamma) * np.log(small))
  mean = lambda x: (
    np.sqrt(before) * beta / (1 - alpha_bar[k]) * x
    + np.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar[k]) * z_t
  )
  if k:
    square = (mean(x) - mean(x_hat)) ** 2
    nats = 0.5 * (np.log(var / small) - 1 + (small + square) / var)
  else:
    p = scipy.stats.norm(mean(x_hat), np.sqrt(var))
    edge = lambda step: np.where(
      np.abs(x + step) > 1, np.sign(step) * np.inf, x + step
    )
    nats = -np.log(p.cdf(edge(1 / 255)) - p.cdf(edge(-1 / 255)))
  return np.mean(nats) / np.log(2)


def test_the_bound_is_that_of_betas():
  """At the first steps, in the middle, and where beta is capped."""
  time = [0, 1, 2, 500, 998, 999]
  x, z_t, x_hat, gamma = case(TABLE, time)
  bound = variational.variational_bound(
    x, z_t, x_hat, gamma, time=jnp.array(time, jnp.float32), schedule=TABLE
  )
  alpha_bar = 1 / (1 + np.exp(-np.array(schedules.cosine_table())))
  for i, k in enumerate(time):
    inputs = (np.float64(a[i]) for a in (x, z_t, x_hat, gamma))
    expected = reference(alpha_bar, k, *inputs)
    np.testing.assert_allclose(bound[i], expected, rtol=2e-3, err_msg=str(k))


@pytest.mark.parametrize("schedule", [TABLE, COSINE, LINEAR])
def test_a_perfect_net_pays_for_its_last_step_alone(schedule):
  """With x_hat = x and the smaller variance, every KL is 0."""
  time = jnp.array([1.0, 1.5, 40.0, 700.0, 999.0])
  x, z_t, _, gamma = case(schedule, time)
  bound = variational.variational_bound(
    x, z_t, x, 0 * gamma, time=time, schedule=schedule
  )
  np.testing.assert_allclose(bound, 0, atol=1e-5)
  more = variational.variational_bound(
    x, z_t, x, 0 * gamma + 1, time=time, schedule=schedule
  )
  assert (more >= bound).all() and more[1] > 0.01


@pytest.mark.parametrize("schedule", [TABLE, COSINE, LINEAR])
def test_gradients_are_finite_all_the_way(schedule):
  time = jnp.array([0.0, 1e-3, 0.999, 1.0, 1.001, 2.0, 500, 999, 999.99, 1000])
  x, z_t, x_hat, gamma = case(schedule, time)

  def total(gamma):
    bound = variational.variational_bound(
      x, z_t, x_hat, gamma, time=time, schedule=schedule
    )
    return bound.sum(), bound

  (_, bound), grads = jax.value_and_grad(total, has_aux=True)(gamma)
  assert np.isfinite(bound).all() and np.isfinite(grads).all()
  assert (np.abs(grads).max((1, 2, 3))[4:8] > 0).all()
