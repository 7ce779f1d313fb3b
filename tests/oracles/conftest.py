"""How a committed fixture is compared with what its script makes today."""

import pathlib
import runpy

import numpy as np
import pytest
import safetensors.numpy

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def remade():
  """remade(script, atol) -> (the script, what it makes), equal to the file."""

  def remade(name: str, atol: float = 1e-5):
    script = runpy.run_path(str(HERE / name))
    live = script["make_fixture"]()
    committed = safetensors.numpy.load_file(script["PATH"])
    assert live.keys() == committed.keys()
    for key, value in committed.items():
      np.testing.assert_allclose(live[key], value, rtol=0, atol=atol)
    return script, live

  return remade
