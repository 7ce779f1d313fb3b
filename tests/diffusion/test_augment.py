"""Conditioning augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import augment, schedules

SHAPE = (96, 96, 3)  # One shape, for compiling takes longer than running.


def make_keys(n):
  return jax.random.split(jax.random.key(0), n)


def make_pictures():
  return jax.random.uniform(jax.random.key(1), (3, *SHAPE), minval=-1)


@pytest.mark.parametrize("levels", [(0.1, 0.2, 0.3), (0.0, 0.5, 1.0)])
def test_noise_follows_each_examples_level(levels):
  """By Monte Carlo; batch 3 of 3 channels, all of them with their example's."""
  lowres = jnp.full((3, *SHAPE), 0.5)
  out = np.asarray(augment.augment(make_keys(3), lowres, jnp.array(levels)))
  assert out.shape == lowres.shape
  alpha = np.cos(np.pi / 2 * np.array(levels))[:, None] * np.ones(3)
  sigma = np.sin(np.pi / 2 * np.array(levels))[:, None] * np.ones(3)
  np.testing.assert_allclose(out.std(axis=(1, 2)), sigma, rtol=0.03)
  np.testing.assert_allclose(out.mean(axis=(1, 2)), 0.5 * alpha, atol=0.03)


@pytest.mark.parametrize(
  "schedule", [schedules.CosineSchedule(), schedules.LinearSchedule()]
)
def test_level_zero_is_the_picture(schedule):
  lowres = make_pictures()
  levels = jnp.array([0.0, 0.2, 0.9])
  out = augment.augment(make_keys(3), lowres, levels, schedule)
  np.testing.assert_array_equal(out[0], lowres[0])
  assert np.abs(out[1] - lowres[1]).max() > 0.05


def test_the_level_goes_through_the_schedule():
  schedule = schedules.LinearSchedule()
  zero, levels = jnp.zeros((3, *SHAPE)), jnp.array([0.1, 0.2, 0.5])
  out = augment.augment(make_keys(3), zero, levels, schedule)
  _, sigma = schedules.alpha_sigma(schedule(levels))
  np.testing.assert_allclose(out.std(axis=(1, 2, 3)), sigma, rtol=0.02)


def test_an_example_does_not_depend_on_its_batch():
  keys, levels = make_keys(3), jnp.array([0.3, 0.6, 0.9])
  lowres = make_pictures()
  out = augment.augment(keys, lowres, levels)
  one = slice(1, 2)
  alone = augment.augment(keys[one], lowres[one], levels[one])
  np.testing.assert_allclose(out[one], alone, rtol=1e-6, atol=1e-7)


def test_half_precision_goes_in_float32_comes_out():
  lowres = make_pictures().astype(jnp.bfloat16)
  out = augment.augment(make_keys(3), lowres, jnp.array([0.0, 0.1, 1.0]))
  assert out.dtype == jnp.float32


@pytest.mark.parametrize("n", [(9, 21), (5, 4), (1, 1), (3, 7)])
def test_bilinear_aligned_is_a_line_between_pixels(n):
  """As numpy interpolates along each axis, from corner to corner."""
  x = np.asarray(jax.random.normal(jax.random.key(2), (2, 5, 4, 3)))
  expected = np.float64(x)
  for axis, size in ((1, n[0]), (2, n[1])):
    m = x.shape[axis]
    at = np.linspace(0, m - 1, size)
    expected = np.apply_along_axis(
      lambda line, at=at, m=m: np.interp(at, np.arange(m), line), axis, expected
    )
  out = augment.bilinear_aligned(x, n)
  np.testing.assert_allclose(out, expected, atol=1e-6)
  np.testing.assert_array_equal(out[:, 0, 0], x[:, 0, 0])
  if min(n) > 1:
    np.testing.assert_array_equal(out[:, -1, -1], x[:, -1, -1])


def test_bilinear_aligned_to_the_same_size_changes_nothing():
  x = make_pictures()
  np.testing.assert_array_equal(augment.bilinear_aligned(x, SHAPE[:2]), x)
