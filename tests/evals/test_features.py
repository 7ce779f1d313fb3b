"""Resizes and features of pixels."""

import numpy as np
import pytest
from PIL import Image

from imagen_jax.evals import features
from imagen_jax.evals.frechet import FeatureStats, frechet_distance


def random_images(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (*shape, 3)).astype(np.uint8)


def tf1_by_loops(image, size):
  """TensorFlow 1's kernel: output i is at i * scale, in float32."""
  x = image.astype(np.float32)
  height, width, _ = x.shape
  scale_y, scale_x = np.float32(height / size), np.float32(width / size)
  out = np.empty((size, size, 3), np.float32)
  for i in range(size):
    at_y = np.float32(i) * scale_y
    top = int(at_y)
    bottom = min(top + 1, height - 1)
    for j in range(size):
      at_x = np.float32(j) * scale_x
      left = int(at_x)
      right = min(left + 1, width - 1)
      dx, dy = at_x - np.float32(left), at_y - np.float32(top)
      above = x[top, left] + (x[top, right] - x[top, left]) * dx
      below = x[bottom, left] + (x[bottom, right] - x[bottom, left]) * dx
      out[i, j] = above + (below - above) * dy
  return out


@pytest.mark.parametrize(
  ("height", "width", "size"),
  [(8, 8, 21), (31, 9, 21), (64, 40, 21), (5, 5, 5)],
)
def test_tf1_resize_against_loops(height, width, size):
  images = random_images(2, height, width)
  out = features.resize_tf1(images, size)
  for image, found in zip(images, out, strict=True):
    np.testing.assert_allclose(found, tf1_by_loops(image, size), atol=1e-4)


def test_tf1_resize_is_not_a_centred_one():
  """By 2: the pixels at 0, 2, 4, ..., neither averaged nor moved by half."""
  images = random_images(1, 42, 42)
  out = features.resize_tf1(images, 21)
  np.testing.assert_array_equal(out, images[:, ::2, ::2])


def test_clean_resize_is_antialiased_and_keeps_the_mean():
  board = np.indices((64, 64)).sum(0)[None, ..., None] % 2 * 255
  board = np.broadcast_to(board, (1, 64, 64, 3)).astype(np.uint8)
  np.testing.assert_allclose(features.resize_clean(board, 16), 127.5, atol=1)
  assert np.ptp(features.resize_tf1(board, 16)) == 0  # the aliased one: black
  image = random_images(1, 40, 30) // 4 + 96  # no overshoot is clipped
  found = features.resize_clean(image, 20)[0]
  rounded = Image.fromarray(image[0]).resize((20, 20), Image.Resampling.BICUBIC)
  assert np.abs(found - np.asarray(rounded)).max() <= 1.01


@pytest.mark.parametrize("size", [16, 48, 64])
def test_pixel_features_are_averages(size):
  images = random_images(3, size, size)
  n = size // 16
  blocks = images.reshape(3, 16, n, 16, n, 3).astype(float).mean((2, 4))
  found = features.pixel_features(images)
  assert found.shape == (3, 768)
  np.testing.assert_allclose(
    found, blocks.reshape(3, -1) / 127.5 - 1, atol=1e-5
  )


def test_pixel_distance_of_a_shift_in_brightness():
  """The distance is of the means alone: d times the squared shift."""
  images = random_images(20, 16, 16) // 2
  stats = [
    FeatureStats.of(features.pixel_features(i)[:, :96])
    for i in (images, images + 51)
  ]
  expected = 96 * (51 / 127.5) ** 2
  assert frechet_distance(*stats) == pytest.approx(expected, rel=5e-6)
  assert stats[0].rank_deficient


@pytest.mark.parametrize(
  ("act", "message"),
  [
    (
      lambda: features.pixel_features(np.zeros((1, 16, 16, 3))),
      r"images are float64 \[1, 16, 16, 3\], expected uint8",
    ),
    (
      lambda: features.pixel_features(random_images(1, 16, 15)),
      "images are 15x16, expected 16x16 or more",
    ),
    (
      lambda: features.inception_features({}, random_images(16, 16)),
      r"images are uint8 \[16, 16, 3\], expected uint8 \[batch",
    ),
    (
      lambda: features.inception_features({}, random_images(1, 9, 9), "torch"),
      "resize is 'torch', expected one of 'tf1', 'clean'",
    ),
  ],
)
def test_bad_input(act, message):
  with pytest.raises(ValueError, match=message):
    act()
