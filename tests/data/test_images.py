import io
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import images


def encode(picture, kind="png", **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def quarters(height=32, width=48):
  """An image with a colour in each quarter, uint8 [H, W, 3]."""
  image = np.full((height, width, 3), (250, 20, 30), np.uint8)
  image[: height // 2, width // 2 :] = (20, 240, 30)
  image[height // 2 :, width // 2 :] = (30, 20, 250)
  return image


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


@pytest.mark.parametrize(("side", "size"), [(192, 64), (50, 16), (16, 40)])
@pytest.mark.parametrize("kind", ["noise", "edges", "smooth"])
def test_bytes_are_resized_as_floats(side, size, kind):
  rng = np.random.default_rng(0)
  image = {
    "noise": rng.integers(0, 256, (side, side + 6, 3)),
    "edges": 255 * rng.integers(0, 2, (side, side + 6, 3)),
    "smooth": np.linspace(0, 255, side * (side + 6) * 3).reshape(side, -1, 3),
  }[kind].astype(np.uint8)[:, 3:-3]  # not contiguous, as a crop is
  expected = images.to_uint8(images.resize(images.to_float(image), size))
  found = images.resize_bytes(image, size)
  assert found.dtype == np.uint8
  apart = np.abs(found.astype(int) - expected)
  assert apart.max() <= 1
  assert apart.mean() < 5e-3  # in 8 bits, PIL is 0.1 off


def test_bytes_of_the_same_size_stay():
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
  assert images.resize_bytes(image, 8) is image


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


def test_plain_pictures():
  image = quarters()
  assert images.decode(image) is image
  grey = np.repeat(image[..., :1], 3, -1)
  np.testing.assert_array_equal(images.decode(image[..., 0]), grey)
  np.testing.assert_array_equal(images.decode(image[..., :1]), grey)
  alpha = np.full((32, 48, 1), 255, np.uint8)
  alpha[0, 0] = 0
  over = images.decode(np.concatenate([image, alpha], -1))
  assert tuple(over[0, 0]) == (255, 255, 255)
  np.testing.assert_array_equal(over[1:], image[1:])


@pytest.mark.parametrize(
  ("image", "message"),
  [
    (
      np.zeros((4, 5, 3), np.float32),
      r"image is float32 \[4, 5, 3\], expected uint8",
    ),
    (np.zeros((4, 5, 2), np.uint8), r"image is uint8 \[4, 5, 2\], expected"),
    (
      np.zeros((1, 4, 5, 3), np.uint8),
      r"image is uint8 \[1, 4, 5, 3\], expected",
    ),
    (np.zeros(4, np.uint8), r"image is uint8 \[4\], expected"),
    (None, "image is NoneType, expected bytes or an array"),
    ("picture.png", "image is str, expected bytes or an array"),
  ],
)
def test_what_is_neither_bytes_nor_plain(image, message):
  with pytest.raises(ValueError, match=message):
    images.decode(image)


def shrunk(image, size):
  return images.to_uint8(images.resize(images.to_float(image), size))


@pytest.mark.parametrize("size", [16, 64])
def test_shrinking_while_decoding_changes_next_to_nothing(size):
  coarse = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  photo = Image.fromarray(coarse).resize((800, 800), Image.Resampling.BICUBIC)
  data = encode(photo, "jpeg", quality=95)
  full, small = images.decode(data), images.decode(data, size)
  assert 3 * size <= len(small) < len(full)
  difference = shrunk(full, size).astype(int) - shrunk(small, size)
  assert np.abs(difference).max() <= 3 and np.abs(difference).mean() < 0.5


def test_other_kinds_shrink_only_if_large():
  data = encode(Image.fromarray(quarters(256, 256)))
  np.testing.assert_array_equal(images.decode(data, 16), quarters(256, 256))
  large = encode(Image.fromarray(quarters(2200, 3300)), compress_level=1)
  small = images.decode(large, 64)  # by 11: the short side stays over 192
  np.testing.assert_array_equal(small, quarters(200, 300))
  assert images.decode(large, 1000).shape == (2200, 3300, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_photo_is_decoded():
  data = encode(Image.fromarray(quarters(12000, 9000)), "jpeg", quality=95)
  image = images.decode(data, 64)
  assert image.shape == (1500, 1125, 3)
  difference = np.abs(image.astype(int) - quarters(1500, 1125))
  assert difference.mean() < 1


def bomb(side):
  """A real PNG of side x side black pixels, in a few kilobytes."""

  def chunk(name, data):
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check

  deflate = zlib.compressobj(9)
  row = bytes(1 + side // 8)
  pixels = b"".join(deflate.compress(row * 1000) for _ in range(side // 1000))
  pixels += deflate.flush()
  header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
  )


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
  assert images.decode(bomb(1000)).shape == (1000, 1000, 3)  # a true PNG
  data = bomb(16000)
  assert len(data) < 100_000
  monkeypatch.setattr(Image, "core", None)  # what holds pixels
  with pytest.raises(
    ValueError, match="16,000 x 16,000 pixels, expected at mo"
  ):
    images.decode(data, 64)
