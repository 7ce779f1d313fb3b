"""Schedules against the paper's numbers and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import schedules

COSINE = schedules.CosineSchedule()
LINEAR = schedules.LinearSchedule()
TABLE = schedules.DiscreteCosineSchedule()
STEP = np.arange(1000)


@pytest.mark.parametrize(
  "t, cosine, linear",
  [
    (0.0, 20.0, 9.12),  # Both clipped: at t = 0 and below t_min.
    (0.001, 12.91, 9.12),
    (0.01, 8.31, 6.22),
    (0.1, 3.69, 2.16),
    (0.5, 0.0, -2.46),
    (0.9, -3.69, -8.15),
    (1.0, -20.0, -10.05),
  ],
)
def test_known_values(t, cosine, linear):
  np.testing.assert_allclose(COSINE(t), cosine, atol=0.006)
  np.testing.assert_allclose(LINEAR(t), linear, atol=0.006)


def test_cosine_is_float64_tan():
  t = np.linspace(1e-3, 1 - 1e-3, 1999)
  expected = -2 * np.log(np.tan(np.pi * t / 2))
  np.testing.assert_allclose(COSINE(t), expected, rtol=1e-4, atol=1e-6)


def test_linear_is_near_the_discrete_thousand_steps():
  alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
  discrete = np.log(alpha_bar) - np.log1p(-alpha_bar)
  continuous = LINEAR(np.arange(1, 1001) / 1000)
  assert np.max(np.abs(continuous - discrete)) < 0.11


@pytest.mark.parametrize("schedule", [COSINE, LINEAR])
def test_decreases_and_is_finite(schedule):
  logsnr = np.asarray(schedule(jnp.linspace(0.0, 1.0, 2001)))
  assert np.isfinite(logsnr).all()
  assert (np.diff(logsnr)[3:-3] < 0).all()
  assert (np.diff(logsnr) <= 0).all()


@pytest.mark.parametrize("schedule", [COSINE, LINEAR])
def test_inverse_undoes_schedule(schedule):
  t = np.linspace(1e-3, 1 - 1e-4, 500)
  np.testing.assert_allclose(schedule.inverse(schedule(t)), t, atol=2e-6)


@pytest.mark.parametrize("schedule", [COSINE, LINEAR])
def test_inverse_stays_in_unit_interval(schedule):
  t = np.asarray(schedule.inverse(jnp.linspace(-40.0, 40.0, 81)))
  assert (t >= 0).all() and (t <= 1).all()


def test_schedule_undoes_inverse():
  logsnr = np.linspace(-20, 20, 81)
  # Near t = 1 a float32 t resolves logsnr to 0.005 only.
  tol = np.where(logsnr < -10, 0.01, 1e-4)
  error = np.abs(COSINE(COSINE.inverse(logsnr)) - logsnr)
  assert (error <= tol).all()


def test_constant_beta_has_an_inverse():
  schedule = schedules.LinearSchedule(beta_min=5.0, beta_max=5.0)
  t = np.linspace(0.01, 0.99, 50)
  np.testing.assert_allclose(schedule.inverse(schedule(t)), t, atol=1e-6)


def test_linear_does_not_overflow():
  schedule = schedules.LinearSchedule(beta_max=159.9)
  np.testing.assert_allclose(schedule(1.0), -80.0, rtol=1e-6)
  alpha, _ = schedules.alpha_sigma(schedule(1.0))
  np.testing.assert_allclose(alpha, np.exp(-40.0), rtol=1e-4)
  with pytest.raises(ValueError, match="is 160.1, expected at most 160"):
    schedules.LinearSchedule(beta_max=160.0)


def test_alpha_sigma():
  logsnr = np.linspace(-20, 20, 81)
  alpha, sigma = map(np.asarray, schedules.alpha_sigma(logsnr))
  assert alpha.dtype == sigma.dtype == np.float32
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
  # It is the LOG of the signal-to-noise ratio, to relative accuracy throughout.
  alpha, sigma = alpha.astype(np.float64), sigma.astype(np.float64)
  np.testing.assert_allclose(alpha**2 / sigma**2, np.exp(logsnr), rtol=1e-5)


def test_cosine_alpha_sigma_are_cosine_and_sine():
  t = np.linspace(0, 1, 101)
  alpha, sigma = schedules.alpha_sigma(COSINE(t))
  np.testing.assert_allclose(alpha, np.cos(np.pi * t / 2), atol=5e-5)
  np.testing.assert_allclose(sigma, np.sin(np.pi * t / 2), atol=5e-5)


@pytest.mark.parametrize(
  "schedule, settings, name",
  [
    (
      schedules.CosineSchedule,
      {"logsnr_min": 3, "logsnr_max": 3},
      "logsnr_min",
    ),
    (schedules.LinearSchedule, {"beta_min": 0.0}, "beta_min"),
    (schedules.LinearSchedule, {"beta_min": 30.0}, "beta_min"),
    (schedules.LinearSchedule, {"t_min": 0.0}, "t_min"),
  ],
)
def test_bad_settings_are_named(schedule, settings, name):
  with pytest.raises(ValueError, match=name):
    schedule(**settings)


def alpha_bar():
  """The products of 1 - beta, in float64."""
  f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
  return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


def test_the_table_is_of_the_capped_cosine_betas():
  expected = alpha_bar()
  alpha, sigma = map(np.asarray, schedules.alpha_sigma(TABLE(STEP / 1000)))
  np.testing.assert_allclose(alpha**2, expected, rtol=1e-5)
  np.testing.assert_allclose(sigma**2, 1 - expected, rtol=1e-5)
  # The cap is at work in the last step alone, which f makes all noise.
  np.testing.assert_allclose(expected[999] / expected[998], 0.001, rtol=1e-9)


def test_the_table_takes_the_nearest_step():
  t = jnp.array([0.0, 0.0004, 0.0006, 0.25, 0.2504, 0.9994, 0.9996, 1.0])
  steps = np.array([0, 0, 1, 250, 250, 999, 999, 999])
  np.testing.assert_array_equal(TABLE(t), TABLE(steps / 1000))
  assert len(np.unique(TABLE(STEP / 1000))) == 1000
  nearer = 0.6 * TABLE(0.25) + 0.4 * TABLE(0.251)
  np.testing.assert_allclose(TABLE.inverse(nearer), 0.25, rtol=1e-6)


def test_the_tables_inverse_is_every_step_and_of_any_shape():
  logsnr = TABLE(STEP / 1000).reshape(10, 100)
  for inverse in (TABLE.inverse, jax.jit(TABLE.inverse)):
    found = inverse(logsnr)
    np.testing.assert_allclose(1000 * found.ravel(), STEP, rtol=2e-7)
  np.testing.assert_allclose(
    TABLE.inverse(jnp.array([-99.0, 99.0])), [0.999, 0], rtol=1e-6
  )


def test_schedules_are_hashable_settings():
  assert hash(TABLE) == hash(schedules.DiscreteCosineSchedule())
  assert hash(COSINE) == hash(schedules.CosineSchedule())
  assert LINEAR == schedules.LinearSchedule() != COSINE


def test_all_steps_of_a_table_are_drawn_alike():
  """Rounded, step 0 would come half as often and step 999 1.5 times."""
  u = (np.arange(64_000, dtype=np.float32) + 0.5) / 64_000
  table = schedules.DiscreteCosineSchedule()
  steps = np.round(1000 * np.asarray(table.from_uniform(u))).astype(int)
  np.testing.assert_array_equal(np.bincount(steps), np.full(1000, 64))
  # The look-up gives these very steps.
  time = 1000 * table.inverse(table(table.from_uniform(u)))
  np.testing.assert_array_equal(np.round(time), steps)
  assert table.from_uniform(np.nextafter(np.float32(1), 0)) < 1
  for schedule in (schedules.CosineSchedule(), schedules.LinearSchedule()):
    np.testing.assert_array_equal(schedule.from_uniform(u), u)
