"""The committed fixture of samplers against diffusers live."""

import numpy as np
import pytest

from imagen_jax.interop.deepfloyd_if import TIMESTEPS


@pytest.mark.oracles
def test_live_samplers_equal_the_fixture(remade):
  remade("make_if_sampler_fixture.py")


@pytest.mark.oracles
@pytest.mark.parametrize("name", TIMESTEPS)
def test_the_lists_are_those_of_diffusers(name):
  from diffusers.pipelines.deepfloyd_if import timesteps

  np.testing.assert_array_equal(
    TIMESTEPS[name], getattr(timesteps, f"{name}_timesteps")
  )
