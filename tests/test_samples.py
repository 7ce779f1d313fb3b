"""Samples as files, images and what a notebook shows."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.images import to_uint8
from imagen_jax.samples import Samples, join


def make(count=4, prompts=("a red star", "Äh?"), side=8, **settings):
  rng = np.random.default_rng(count)
  each = count // len(prompts)
  draw = lambda side: rng.uniform(-1, 1, (count, side, side, 3))
  return Samples(
    prompts=tuple(p for p in prompts for _ in range(each)),
    seeds=(3,) * count,
    indices=tuple(range(each)) * len(prompts),
    ids=tuple(f"{i:064x}"[::-1] for i in range(count)),
    stages={"small": draw(4), "large": draw(side)},
    settings={"config": "{}", **settings},
  )


def test_images_and_arrays_are_the_last_stages():
  samples = make()
  assert len(samples) == len(samples.images) == 4
  assert samples.arrays.shape == (4, 8, 8, 3)
  np.testing.assert_array_equal(
    np.stack(samples.images), to_uint8(samples.arrays)
  )


def test_files_hold_how_they_were_made(tmp_path):
  samples = make(guidance="5.0")
  paths = samples.save(tmp_path / "new")
  assert [path.name for path in paths[:2]] == [
    "a_red_star-s3-guidance5.0-0-00000000.png",
    "a_red_star-s3-guidance5.0-1-10000000.png",
  ]
  assert len({path.name for path in paths}) == 4
  for path, image in zip(paths, samples.images, strict=True):
    with Image.open(path) as found:
      np.testing.assert_array_equal(found, image)
  assert found.text == {
    "prompt": "Äh?", "seed": "3", "index": "1",
    "config": "{}", "guidance": "5.0", "id": samples.ids[3],
  }  # fmt: skip


def test_the_grid_has_a_row_per_prompt(tmp_path):
  sheet = make().grid()
  assert sheet.size == (2 * 8 + 2, 2 * 8 + 2)
  assert make(prompts=tuple("abcdef"), count=6).grid().size == (38, 18)
  assert make().grid(columns=4).size == (38, 8)
  (path,) = make().save_grid(tmp_path)
  with Image.open(path) as found:
    np.testing.assert_array_equal(found, sheet)
    assert json.loads(found.text["prompt"]) == ["a red star", "Äh?"]


def test_a_large_grid_is_split_into_sheets(tmp_path, monkeypatch):
  monkeypatch.setattr("imagen_jax.samples.SHEET_PIXELS", 4 * 64 + 10)
  samples = make(10, prompts=("a", "b", "c", "d", "e"))
  paths = samples.save_grid(tmp_path)
  assert [path.name[-6:] for path in paths] == ["-1.png", "-2.png", "-3.png"]
  sheets = [np.asarray(Image.open(path)) for path in paths]
  assert [sheet.shape for sheet in sheets] == [(18, 18, 3)] * 2 + [(8, 18, 3)]
  np.testing.assert_array_equal(sheets[2][:, 10:], samples.images[9])
  with Image.open(paths[1]) as found:
    assert json.loads(found.text["prompt"]) == ["c", "d"]


def test_a_prompt_of_many_images_has_more_than_one_row(tmp_path, monkeypatch):
  """Of 180 images of 1024x1024 one row is more than Pillow opens."""
  monkeypatch.setattr("imagen_jax.samples.SHEET_PIXELS", 6 * 64)
  samples = make(10, prompts=("a",))
  paths = samples.save_grid(tmp_path)
  shapes = [np.asarray(Image.open(path)).shape for path in paths]
  assert shapes == [(28, 18, 3), (18, 18, 3)]  # two columns: 6 and 4 images
  last = np.asarray(Image.open(paths[1]))[10:, 10:]
  np.testing.assert_array_equal(last, samples.images[9])


def test_unconditional_images_have_names_too(tmp_path):
  samples = make(prompts=(None,), count=2)
  assert len({path.name for path in samples.save(tmp_path)}) == 2


@pytest.mark.parametrize("side", [8, 3000])
def test_a_notebook_shows_the_grid(side):
  shown = Image.open(io.BytesIO(make(2, ("a",), side)._repr_png_()))
  assert max(shown.size) == (18 if side == 8 else 2001)


def test_join_keeps_the_order():
  one, two = make(2, ("a",)), make(4)
  both = join([one, two])
  assert both.prompts == one.prompts + two.prompts
  assert both.indices == (0, 1, 0, 1, 0, 1)
  for name in ("small", "large"):
    expected = np.concatenate([one.stages[name], two.stages[name]])
    np.testing.assert_array_equal(both.stages[name], expected)
