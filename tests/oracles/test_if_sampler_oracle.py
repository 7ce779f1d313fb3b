"""The committed fixture of samplers against diffusers live."""

import pathlib
import runpy

import numpy as np
import pytest
import safetensors.numpy

from imagen_jax.diffusion.timesteps import LISTS

SCRIPT = runpy.run_path(
  str(pathlib.Path(__file__).with_name("make_if_sampler_fixture.py"))
)


@pytest.mark.oracles
def test_live_samplers_equal_the_fixture():
  live = SCRIPT["make_fixture"]()
  committed = safetensors.numpy.load_file(SCRIPT["PATH"])
  assert live.keys() == committed.keys()
  for name, value in committed.items():
    np.testing.assert_allclose(live[name], value, rtol=0, atol=1e-5)


@pytest.mark.oracles
@pytest.mark.parametrize("name", LISTS)
def test_the_lists_are_those_of_diffusers(name):
  from diffusers.pipelines.deepfloyd_if import timesteps

  np.testing.assert_array_equal(
    LISTS[name], getattr(timesteps, f"{name}_timesteps")
  )
