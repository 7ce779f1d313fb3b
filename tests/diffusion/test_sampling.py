"""The times at which the net is asked, and how settings name them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, samplers
from imagen_jax.diffusion.sampling import Sampling, time


def test_uniform_times_end_one_step_above_zero():
  times = time(jnp.arange(5), 4)
  np.testing.assert_array_equal(times, [1, 0.75, 0.5, 0.25, 0])
  expected = jnp.linspace(1.0, 0.0, 65)
  np.testing.assert_allclose(time(jnp.arange(65), 64), expected, atol=1e-7)
  assert Sampling().num_steps == 256 and Sampling(3).num_steps == 3


def test_listed_times_are_thousandths():
  args = Sampling(timesteps=(990, 500, 7)).args()
  assert args.steps == 3 and args.timesteps.shape == (1000,)
  times = time(jnp.arange(4), args.steps, args.timesteps)
  np.testing.assert_allclose(times, [0.99, 0.5, 0.007, 0.007], rtol=1e-6)


def test_other_values_are_arguments_of_the_same_types():
  """What a jitted function compiles for: the tree, shapes and dtypes."""
  dynamic, ancestral = guidance.DynamicThreshold, samplers.Ancestral
  key = lambda sampling: (
    jax.tree.structure(sampling.args()),
    [jax.typeof(leaf) for leaf in jax.tree.leaves(sampling.args())],
  )
  plain = Sampling(9, 3.0, ancestral(0.0), dynamic(95.0), 0.1)
  same = Sampling(2000, 4, ancestral(1), dynamic(90), 0.3)
  assert key(plain) == key(same)
  listed = Sampling(timesteps=(5, 0))
  assert key(listed) == key(Sampling(timesteps=(999, 5, 0), guidance=2))
  for other in (
    plain.replace(guidance=1.0),
    plain.replace(step=samplers.DDIM()),
    plain.replace(threshold=dynamic(95.0, cap=2.0)),
    plain.replace(timesteps=(5, 0)),
  ):
    assert key(plain) != key(other)


@pytest.mark.parametrize(
  ("given", "said"),
  [
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
    Sampling(9, timesteps=(5, 0))


def test_replacing_one_takes_back_the_other():
  listed = Sampling(timesteps=(5, 0), guidance=7.0)
  assert listed.replace(steps=9) == Sampling(9, guidance=7.0)
  assert listed.replace(guidance=2.0).timesteps == (5, 0)
  assert Sampling(9).replace(timesteps=(5, 0)) == Sampling(timesteps=(5, 0))
