"""The committed T5 fixture, and our encoder, against transformers live."""

import flax
import jax
import numpy as np
import pytest

from imagen_jax.nets.t5 import T5Encoder


@pytest.mark.oracles
def test_live_t5_equals_the_fixture_and_ours(remade):
  script, live = remade("make_t5_fixture.py")
  flat = {
    name.removeprefix("params/"): value
    for name, value in live.items()
    if name.startswith("params/")
  }
  params = flax.traverse_util.unflatten_dict(flat, sep="/")
  module = T5Encoder(**script["SIZES"])
  for name in script["INPUTS"]:
    with jax.default_matmul_precision("highest"):
      output = module.apply(
        {"params": params}, live[f"{name}/ids"], live[f"{name}/mask"]
      )
    np.testing.assert_allclose(
      output, live[f"{name}/output"], rtol=0, atol=2e-5
    )
