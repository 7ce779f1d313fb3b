"""build: what a training run takes of its config besides the stage."""

import dataclasses
import math

import numpy as np
from ml_collections import ConfigDict

from imagen_jax import build
from imagen_jax.training.settings import Data, Training


def test_the_learning_rate_is_the_optimizers():
  """At updates 0, 10k and 2.5M of the paper's, and of one's own."""
  rate = build.learning_rate({"kind": "adam"})
  np.testing.assert_allclose(
    [rate(0), rate(5_000), rate(10_000), rate(2_500_000)],
    [0, 5e-5, 1e-4, 0],
    atol=1e-12,
  )
  own = {"learning_rate": 1e-3, "warmup_steps": 2, "decay_steps": 8}
  rate = build.learning_rate({"kind": "adam", **own})
  expected = [0, 5e-4, 1e-3, 1e-3 * (1 + math.cos(math.pi / 2)) / 2, 0]
  found = [rate(n) for n in (0, 1, 2, 5, 8)]
  np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_config_as_json_has_the_defaults_of_data_and_train():
  given = ConfigDict({"data": {"batch_size": 8}, "train": {}, "text": {"a": 1}})
  found = build.as_json(given)
  assert found["data"] == dataclasses.asdict(Data(batch_size=8))
  assert found["train"] == dataclasses.asdict(Training())
  assert found["text"] == {"a": 1}
