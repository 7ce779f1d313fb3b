"""CMMD against closed forms and the sum over all pairs."""

import numpy as np
import pytest

from imagen_jax.evals import cmmd as module
from imagen_jax.evals.cmmd import cmmd


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
def test_two_directions(degrees):
  """1000 (2 - 2 k), with k = exp(-|x - y|^2 / 200)."""
  angle = np.deg2rad(degrees)
  y = 7 * np.array([[np.cos(angle), np.sin(angle)]])  # lengths do not count
  squared = (2 * np.sin(angle / 2)) ** 2
  expected = 1000 * (2 - 2 * np.exp(-squared / 200))
  np.testing.assert_allclose(cmmd([[3.0, 0.0]], y), expected, atol=1e-9)


def test_opposite_points_of_a_circle():
  """Of x and -x against x: E k(a, a') = (1 + q) / 2, with q = exp(-4 / 200)."""
  q = np.exp(-4 / 200)
  expected = 1000 * ((1 + q) / 2 + 1 - 2 * (1 + q) / 2)
  found = cmmd([[1.0, 0.0], [-1.0, 0.0]], [[1.0, 0.0]])
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_blocks_sum_all_pairs(monkeypatch):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(7, 5)), rng.normal(size=(4, 5)) + 1
  monkeypatch.setattr(module, "_ROWS", 3)
  unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
  kernel = lambda a, b: np.exp(
    -((unit(a)[:, None] - unit(b)[None]) ** 2).sum(-1) / 200
  ).mean()
  expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
  np.testing.assert_allclose(cmmd(x, y), expected, rtol=1e-9)
  np.testing.assert_allclose(cmmd(y, x), expected, rtol=1e-9)
  assert abs(cmmd(x, x[::-1])) < 1e-9


@pytest.mark.parametrize(
  ("first", "second", "said"),
  [
    (np.ones((2, 3)), np.ones((2, 4)), r"are \[2, 3\] and \[2, 4\], expected"),
    (np.ones((0, 3)), np.ones((2, 3)), r"are \[0, 3\] and"),
    (np.ones(3), np.ones((2, 3)), r"are \[3\] and"),
    (np.ones((2, 3)), np.zeros((2, 3)), "row 0 of the second embeddings is ze"),
    (np.full((2, 3), np.nan), np.ones((2, 3)), "row 0 of the first embeddings"),
  ],
)
def test_bad_embeddings(first, second, said):
  with pytest.raises(ValueError, match=said):
    cmmd(first, second)
