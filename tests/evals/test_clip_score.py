"""CLIP score of given features."""

import numpy as np
import pytest

from imagen_jax.evals.clip_score import clip_score


def test_cosines_by_hand():
  images = np.array([[3, 0], [0, 2], [1, 1]], np.float32)
  texts = np.array([[1, 1], [0, 5], [-1, -1]], np.float32)
  found = clip_score(images, texts)
  own = np.array([np.sqrt(0.5), 1, -1])
  assert found.score == pytest.approx(own.mean())
  assert found.standard_error == pytest.approx(own.std(ddof=1) / np.sqrt(3))
  # Not 100 max(cos, 0): the negative one counts.
  half = np.sqrt(0.5)
  others = [0, -half, half, -half, 1, half]
  assert found.shuffled == pytest.approx(np.mean(others))
  assert found.count == 3


def test_shuffled_is_the_mean_over_all_other_captions():
  rng = np.random.default_rng(0)
  images, texts = rng.normal(size=(2, 20, 8)) + 0.3
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  cosines = unit(images) @ unit(texts).T
  found = clip_score(images, texts)
  assert found.score == pytest.approx(np.diag(cosines).mean())
  expected = cosines[~np.eye(20, dtype=bool)].mean()
  assert found.shuffled == pytest.approx(expected)


def test_a_model_that_ignores_captions_has_its_shuffled_score():
  texts = np.random.default_rng(0).normal(size=(30, 8))
  found = clip_score(np.ones((30, 8)), texts)
  assert found.score == pytest.approx(found.shuffled)


@pytest.mark.parametrize(
  ("images", "texts", "message"),
  [
    (
      np.ones((2, 3)),
      np.ones((3, 3)),
      r"are \[2, 3\] and text .*\[3, 3\], exp",
    ),
    (np.ones((2, 3)), np.ones((2, 4)), "expected both"),
    (np.ones((1, 3)), np.ones((1, 3)), "with 2 images or more"),
    (np.ones(3), np.ones(3), "expected both"),
    (np.eye(2), [[1, 0], [0, 0]], "text features of row 1 are zero or not"),
    ([[np.nan, 1], [1, 0]], np.eye(2), "image features of row 0 are zero or"),
  ],
)
def test_bad_input(images, texts, message):
  with pytest.raises(ValueError, match=message):
    clip_score(images, texts)
