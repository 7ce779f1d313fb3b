import io

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import images


def test_to_float_and_back_is_exact():
  every = np.arange(256, dtype=np.uint8)
  x = images.to_float(every)
  assert x.dtype == np.float32 and (x[0], x[-1]) == (-1, 1)
  np.testing.assert_array_equal(images.to_uint8(x), every)
  np.testing.assert_array_equal(
    images.to_uint8(np.array([-3.0, 3.0, 0.0])), [0, 255, 128]
  )


@pytest.mark.parametrize("size", [16, 64])
def test_a_checkerboard_becomes_its_mean(size):
  board = np.indices((256, 256)).sum(0) % 2
  x = np.repeat(board[..., None], 3, -1).astype(np.float32)
  # A cubic leaves 0.6 % of the highest frequency at a factor of four.
  np.testing.assert_allclose(images.resize(x, size), 0.5, atol=4e-3)


@pytest.mark.parametrize("size", [16, 64, 300])
@pytest.mark.parametrize("value", [-1.0, 0.25, 1.0])
def test_a_constant_stays_constant(size, value):
  x = np.full((256, 256, 3), value, np.float32)
  y = images.resize(x, size)
  assert y.shape == (size, size, 3) and y.dtype == np.float32
  np.testing.assert_allclose(y, value, atol=1e-6)


@pytest.mark.parametrize(("side", "size"), [(256, 16), (256, 64), (100, 64)])
def test_resize_agrees_with_jax(side, size):
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (side, side, 3)).astype(np.float32)
  y = jax.image.resize(x, (size, size, 3), "cubic", antialias=True)
  np.testing.assert_allclose(
    images.resize(x, size), np.clip(y, -1, 1), atol=1e-5
  )


def test_resize_to_the_same_size_is_the_identity():
  x = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
  np.testing.assert_array_equal(images.resize(x, 16), x)


def test_overshoot_at_edges_is_clipped():
  x = np.full((64, 64, 1), -1, np.float32)
  x[:, 30:] = 1
  y = images.resize(x, 16)
  assert y.min() == -1 and y.max() == 1


def test_crops_reach_every_window_and_nothing_else():
  image = np.arange(4 * 5).reshape(4, 5)[..., None]
  rng = np.random.default_rng(0)
  crops = [images.random_crop(image, 3, rng) for _ in range(200)]
  corners = {int(c[0, 0, 0]) for c in crops}
  assert corners == {0, 1, 2, 5, 6, 7}
  assert all(c.shape == (3, 3, 1) for c in crops)
  assert images.random_crop(image[:, :4], 4, rng).shape == (4, 4, 1)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 6), (6, 6)])
def test_central_square(shape):
  image = np.arange(shape[0] * shape[1]).reshape(shape)[..., None]
  square = images.central_square(image)
  assert square.shape == (6, 6, 1)
  top, left = (shape[0] - 6) // 2, (shape[1] - 6) // 2
  assert square[0, 0, 0] == image[top, left, 0]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_decode_gives_three_channels(mode):
  file = io.BytesIO()
  Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(file, "png")
  image = images.decode(file.getvalue())
  np.testing.assert_array_equal(image, np.full((4, 5, 3), 255))
  assert image.dtype == np.uint8


@pytest.mark.parametrize("damage", [b"", b"not a picture", "truncated"])
def test_decode_names_the_trouble(damage):
  if damage == "truncated":
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file, "png")
    damage = file.getvalue()[:3000]
  with pytest.raises(ValueError, match="cannot be decoded"):
    images.decode(damage)


def test_decode_takes_arrays_of_the_right_kind_only():
  image = np.zeros((4, 5, 3), np.uint8)
  assert images.decode(image) is image
  with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got float32"):
    images.decode(image.astype(np.float32))
  with pytest.raises(ValueError, match=r"got uint8 \(4, 5\)"):
    images.decode(image[..., 0])
