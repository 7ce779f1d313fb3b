"""DeepFloyd IF's lists of timesteps."""

from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.interop.deepfloyd_if import TIMESTEPS

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


def test_the_lists_are_as_long_as_they_say_and_usable():
  assert {name: len(steps) for name, steps in TIMESTEPS.items()} == COUNTS
  for steps in TIMESTEPS.values():
    assert steps[0] == 999 and steps[-1] == 0
    assert Sampling(timesteps=steps).num_steps == len(steps)
