"""The committed DeepFloyd IF fixture, and our nets, against diffusers live."""

import json
import pathlib
import runpy

import numpy as np
import pytest
import safetensors.numpy

from imagen_jax.interop import diffusers

HERE = pathlib.Path(__file__).parent
SCRIPT = runpy.run_path(str(HERE / "make_if_fixture.py"))
TESTS = runpy.run_path(str(HERE.parent / "interop" / "test_diffusers.py"))


@pytest.mark.oracles
def test_live_nets_equal_the_fixture(remade):
  remade("make_if_fixture.py")


@pytest.mark.oracles
def test_the_live_cascade_equals_the_fixture(remade):
  remade("make_if_cascade_fixture.py", atol=1e-4)


@pytest.mark.oracles
@pytest.mark.parametrize("name", SCRIPT["CONFIGS"])
def test_what_we_write_diffusers_reads(name, tmp_path):
  """Its own loader, its own forward pass: the output of the fixture."""
  from diffusers import UNet2DConditionModel

  config = SCRIPT["CONFIGS"][name]
  net = diffusers.unet(config)
  like = TESTS["shapes"](net, config["encoder_hid_dim"], "aug" in _inputs(name))
  state = {
    key: SCRIPT["weight"](key, shape)
    for key, shape in diffusers.diffusers_shapes(like).items()
  }
  params = diffusers.load(TESTS["write"](tmp_path / "a", config, state), like)
  diffusers.save(tmp_path / "b", net, params)
  theirs = UNet2DConditionModel.from_pretrained(
    tmp_path / "b", use_safetensors=True, low_cpu_mem_usage=False
  )
  output = SCRIPT["run"](theirs.eval(), _inputs(name))
  committed = safetensors.numpy.load_file(SCRIPT["PATH"])
  np.testing.assert_allclose(
    output, committed[f"{name}/output"], rtol=0, atol=1e-5
  )
  assert json.loads((tmp_path / "b" / "config.json").read_text())


def _inputs(name):
  return SCRIPT["make_inputs"](name)
