"""The times at which the net is asked, and how settings name them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, samplers
from imagen_jax.diffusion.sampling import (
  Sampling,
  UniformLogSNR,
  UniformTime,
  time,
)
from imagen_jax.diffusion.schedules import (
  CosineSchedule,
  DiscreteCosineSchedule,
  LinearSchedule,
)

COSINE = CosineSchedule()


def test_uniform_times_end_one_step_above_zero():
  times = time(jnp.arange(5), Sampling(4).args(), COSINE)
  np.testing.assert_array_equal(times, [1, 0.75, 0.5, 0.25, 0])
  expected = jnp.linspace(1.0, 0.0, 65)
  times = time(jnp.arange(65), Sampling(64).args(), COSINE)
  np.testing.assert_allclose(times, expected, atol=1e-7)
  assert Sampling().num_steps == 256 and Sampling(3).num_steps == 3


def test_listed_times_are_thousandths():
  args = Sampling(timesteps=(990, 500, 7)).args()
  assert args.steps == 3 and args.timesteps.shape == (1000,)
  times = time(jnp.arange(4), args, COSINE)
  np.testing.assert_allclose(times, [0.99, 0.5, 0.007, 0.007], rtol=1e-6)


@pytest.mark.parametrize("schedule", [COSINE, LinearSchedule()])
@pytest.mark.parametrize("t_first", [1.0, 0.995])
def test_levels_uniform_in_logsnr(schedule, t_first):
  args = Sampling(25, grid=UniformLogSNR(t_first, t_last=0.02)).args()
  times = time(jnp.arange(26), args, schedule)
  assert times[0] == np.float32(t_first) and times[24] == np.float32(0.02)
  assert times[25] == times[24]  # there is no step after the last
  expected = np.linspace(*schedule(np.array([t_first, 0.02])), 25)
  np.testing.assert_allclose(schedule(times[:25]), expected, atol=5e-3)


def test_levels_of_a_table_are_its_own():
  args = Sampling(25, grid=UniformLogSNR(t_first=0.98)).args()
  steps = 1000 * time(jnp.arange(25), args, DiscreteCosineSchedule())
  np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
  assert (round(float(steps[0])), steps[-1]) == (980, 10)
  assert np.all(np.diff(steps) < 0)


def test_one_step_is_at_the_beginning():
  args = Sampling(1, grid=UniformLogSNR()).args()
  assert time(jnp.int32(0), args, COSINE) == 1.0


@pytest.mark.parametrize(
  "times", [(1.0, 0.0), (0.5, 0.5), (1.1, 0.1), (0.1, 0.5), (1.0, np.nan)]
)
def test_bad_ends_of_a_grid_are_named(times):
  with pytest.raises(ValueError, match="t_first is .*t_last .*, expected 0 <"):
    UniformLogSNR(*times)


def test_other_values_are_arguments_of_the_same_types():
  """What a jitted function compiles for: the tree, shapes and dtypes."""
  dynamic, ancestral = guidance.DynamicThreshold, samplers.Ancestral
  key = lambda sampling: (
    jax.tree.structure(sampling.args()),
    [jax.typeof(leaf) for leaf in jax.tree.leaves(sampling.args())],
  )
  assert Sampling().grid == UniformTime()
  plain = Sampling(9, 3.0, ancestral(0.0), dynamic(95.0), 0.1)
  same = Sampling(2000, 4, ancestral(1), dynamic(90), 0.3)
  assert key(plain) == key(same)
  more = dict(guidance_interval=(-1, 2.5), guidance_rescale=0.7)
  ends = dict(guidance_interval=(-9.0, float("inf")), guidance_rescale=1)
  assert key(plain.replace(**more)) == key(plain.replace(**ends))
  off = dict(guidance_interval=None, guidance_rescale=0.0)
  assert key(plain.replace(**more).replace(**off)) == key(plain)
  without = plain.replace(guidance=1.0)  # where there is nothing to limit
  assert key(without.replace(**more)) == key(without)
  listed = Sampling(timesteps=(5, 0))
  assert key(listed) == key(Sampling(timesteps=(999, 5, 0), guidance=2))
  for other in (
    plain.replace(guidance=1.0),
    plain.replace(step=samplers.DDIM()),
    plain.replace(threshold=dynamic(95.0, cap=2.0)),
    plain.replace(timesteps=(5, 0)),
    plain.replace(grid=UniformLogSNR()),
    plain.replace(guidance_interval=(-1.0, 2.5)),
    plain.replace(guidance_rescale=0.7),
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


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"guidance_interval": (2.0, 1.0)}, r"is \(2.0, 1.0\), expected two log"),
    ({"guidance_interval": (1.0, 1.0)}, "expected two log-SNR, the lower"),
    ({"guidance_interval": (1.0,)}, r"guidance_interval is \(1.0,\), expected"),
    ({"guidance_interval": (np.nan, 1.0)}, "guidance_interval is .*expected"),
    ({"guidance_rescale": 1.1}, "guidance_rescale is 1.1, expected 0 to 1"),
    ({"guidance_rescale": -0.1}, "guidance_rescale is -0.1, expected 0 to 1"),
    ({"guidance_rescale": np.nan}, "guidance_rescale is nan, expected 0 to 1"),
  ],
)
def test_bad_guidance_is_named(changes, said):
  with pytest.raises(ValueError, match=said):
    Sampling(**changes)
