"""The times at which the net is asked, and how settings name them."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import timesteps
from imagen_jax.diffusion.sampling import Sampling

COUNTS = {
  "fast27": 27,
  "smart27": 27,
  "smart50": 50,
  "smart100": 100,
  "smart185": 185,
  "super27": 27,
  "super40": 40,
  "super100": 100,
}


def test_uniform_times_end_one_step_above_zero():
  np.testing.assert_allclose(timesteps.uniform(4), [1, 0.75, 0.5, 0.25])
  np.testing.assert_array_equal(Sampling().times, timesteps.uniform(256))
  np.testing.assert_array_equal(Sampling(3).times, timesteps.uniform(3))


def test_the_lists_are_as_long_as_they_say_and_whole():
  assert {name: len(steps) for name, steps in timesteps.LISTS.items()} == COUNTS
  for name, steps in timesteps.LISTS.items():
    assert steps[0] == 999 and steps[-1] == 0
    times = Sampling(timesteps=name).times
    np.testing.assert_allclose(1000 * times, steps, rtol=1e-6)


def test_steps_of_ones_own():
  times = Sampling(timesteps=tuple(range(990, -1, -10))).times
  assert times.shape == (100,) and times.dtype == jnp.float32
  np.testing.assert_allclose(times[:3], [0.99, 0.98, 0.97], rtol=1e-6)
  np.testing.assert_allclose(Sampling(timesteps=(7,)).times, [0.007])


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ("fast28", "timesteps is 'fast28', expected whole steps or one of 'fast27"),
    ((1000, 0), "timesteps begins with 1000, expected a step of 999..0"),
    ((5, -1), "timesteps has -1 after 5, expected steps of 999..0, each less"),
    ((5, 5, 0), "timesteps has 5 after 5, expected"),
    ((0, 999), "timesteps has 999 after 0, expected"),
    ((), "timesteps has no step, expected at least one"),
  ],
)
def test_bad_lists_are_named(given, said):
  with pytest.raises(ValueError, match=said):
    Sampling(timesteps=given)


def test_steps_and_timesteps_exclude_each_other():
  with pytest.raises(ValueError, match="steps is 9 beside timesteps, expected"):
    Sampling(9, timesteps="fast27")


def test_replacing_one_takes_back_the_other():
  listed = Sampling(timesteps="fast27", guidance=7.0)
  assert listed.replace(steps=9) == Sampling(9, guidance=7.0)
  assert listed.replace(guidance=2.0).timesteps == "fast27"
  assert Sampling(9).replace(timesteps=(5, 0)) == Sampling(timesteps=(5, 0))
