"""build: what a training run takes of its config besides the stage."""

import math

import numpy as np

from imagen_jax import build


def test_the_learning_rate_is_the_optimizers():
  """At updates 0, 10k and 2.5M of the paper's, and of one's own."""
  rate = build.optimizer({"kind": "adam"}).schedule
  np.testing.assert_allclose(
    [rate(0), rate(5_000), rate(10_000), rate(2_500_000)],
    [0, 5e-5, 1e-4, 0],
    atol=1e-12,
  )
  own = {"learning_rate": 1e-3, "warmup_steps": 2, "decay_steps": 8}
  rate = build.optimizer({"kind": "adam", **own}).schedule
  expected = [0, 5e-4, 1e-3, 1e-3 * (1 + math.cos(math.pi / 2)) / 2, 0]
  found = [rate(n) for n in (0, 1, 2, 5, 8)]
  np.testing.assert_allclose(found, expected, atol=1e-10)
