"""PNG files: pixels and notes come back, grids, and what cannot be written."""

import resource
import signal

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.png import captioned, grid, upsample, write_png


def picture(height: int = 6, width: int = 5, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def test_pixels_and_notes_come_back(tmp_path):
  note = {
    "prompt": 'ein "grüner" Stern ★ above\na line',
    "seed": "3",
    "config": '{"a": [1, 2]}',
    "empty": "",
  }
  write_png(tmp_path / "a.png", picture(), note)
  with Image.open(tmp_path / "a.png") as image:
    np.testing.assert_array_equal(np.asarray(image), picture())
    assert image.text == note


def test_a_picture_without_notes(tmp_path):
  write_png(tmp_path / "a.png", picture())
  with Image.open(tmp_path / "a.png") as image:
    assert image.text == {}


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
  path = tmp_path / "new" / "folder" / "a.png"
  for seed in (0, 1):
    write_png(path, picture(seed=seed))
  assert list(path.parent.iterdir()) == [path]
  np.testing.assert_array_equal(np.asarray(Image.open(path)), picture(seed=1))


@pytest.mark.parametrize("where", ["file/a.png", "taken"])
def test_a_place_that_cannot_be_written(tmp_path, where):
  (tmp_path / "file").touch()
  (tmp_path / "taken" / "full").mkdir(parents=True)
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(
    ValueError, match=f"^{tmp_path}/{where} cannot be written"
  ):
    write_png(tmp_path / where, picture())
  assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_leaves_the_older_picture(tmp_path):
  """Half way through the file, at a limit of its size."""
  path = tmp_path / "a.png"
  write_png(path, picture())
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
  try:
    with pytest.raises(
      ValueError, match="a.png cannot be written: File too large"
    ):
      write_png(path, picture(seed=1))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), picture())
  assert list(tmp_path.iterdir()) == [path]


def test_enlarged_pixels_are_squares():
  big = upsample(picture(4, 4), 12)
  assert big.dtype == np.uint8
  expected = picture(4, 4).repeat(3, axis=0).repeat(3, axis=1)
  np.testing.assert_array_equal(big, expected)
  np.testing.assert_array_equal(upsample(picture(4, 4), 4), picture(4, 4))


def test_a_grid_is_row_by_row_with_gaps():
  pictures = [picture(seed=i) for i in range(5)]
  sheet = grid(pictures, columns=2)
  assert sheet.shape == (3 * 6 + 2 * 2, 2 * 5 + 2, 3)
  assert sheet.dtype == np.uint8
  left = np.ones(sheet.shape[:2], bool)
  for i, one in enumerate(pictures):
    y, x = i // 2 * 8, i % 2 * 7
    np.testing.assert_array_equal(sheet[y : y + 6, x : x + 5], one)
    left[y : y + 6, x : x + 5] = False
  assert (sheet[left] == 128).all()


def test_a_grid_of_one():
  np.testing.assert_array_equal(grid([picture()], columns=1), picture())


def test_a_caption_lies_below_its_picture():
  above = picture(20, 100)
  strip = lambda text: captioned(above, text)[20:]
  out = captioned(above, "a red star")
  np.testing.assert_array_equal(out[:20], above)
  assert out.shape[1] == 100 and out.dtype == np.uint8
  dark = lambda part: int((part < 128).sum())
  assert dark(strip("")) == 0 < dark(strip("a")) < dark(strip("a red star"))
  # Of one size, however long the text, and all of it within.
  words = "seven small blue squares with stripes above one large red triangle"
  long = strip(words * 5)
  assert long.shape == strip("a").shape
  assert dark(long[:, :2]) == dark(long[:, -1:]) == 0
  rows = (long < 128).any(axis=(1, 2))
  assert np.count_nonzero(np.diff(rows.astype(int)) == 1) >= 3  # lines
