"""Captions that are drawn from a split, and its real images."""

import json

import numpy as np
import pytest
from etils import epath

from imagen_jax.data import images
from imagen_jax.evals import drawn
from imagen_jax.shapes.examples import Endless


class Source(list):
  """Records, of which some cannot be read."""

  def __getitem__(self, i):
    record = super().__getitem__(i)
    if record is None:
      raise ValueError("it cannot be parsed")
    return record


def source(count=50):
  return Source({"caption": f"caption {i}"} for i in range(count))


def test_the_first_of_many_draws_are_the_few():
  few, many = (
    drawn.draw(source(), n, 3, captions=True).numbers for n in (9, 50)
  )
  assert many[:9] == few
  assert sorted(many) == list(range(50))
  assert few != drawn.draw(source(), 9, 4, captions=True).numbers


def test_a_split_without_end_is_drawn_from():
  found = drawn.draw(Endless("test"), 3, 0, captions=True)
  assert len({*found.numbers}) == 3 and max(found.numbers) > 10**7


def test_every_draw_has_one_caption_by_the_seed():
  records = Source({"caption": ["", "a", "b", "c"]} for _ in range(40))
  one = drawn.draw(records, 40, 0, captions=True)
  assert {*one.captions} == {"a", "b", "c"}
  by_number = dict(zip(one.numbers, one.captions, strict=True))
  few = drawn.draw(records, 5, 0, captions=True)
  assert [by_number[n] for n in few.numbers] == list(few.captions)


@pytest.mark.parametrize("bad", [None, {"caption": " "}, {"caption": []}])
def test_records_without_a_caption_are_left_out(bad):
  records = source(9)
  records[4:6] = [bad, bad]
  found = drawn.draw(records, 9, 0, captions=True)
  assert sorted(found.numbers) == [0, 1, 2, 3, 6, 7, 8]
  with pytest.raises(ValueError, match="none of the 2 records has a caption"):
    drawn.draw(Source([bad, bad]), 2, 0, captions=True)


def test_the_list_is_written_with_its_seed(tmp_path):
  path = epath.Path(tmp_path / "new" / "captions.json")
  found = drawn.draw(source(), 4, 7, captions=True)
  found.write(path, {"dataset": "mine", "split": "test"})
  listed = json.loads(path.read_text())
  assert (listed["dataset"], listed["split"], listed["seed"]) == (
    "mine",
    "test",
    7,
  )
  assert listed["captions"] == [f"caption {i}" for i in listed["records"]]
  assert tuple(listed["records"]) == found.numbers


def test_real_images_are_central_squares_of_the_size():
  image = np.zeros((8, 14, 3), np.uint8)
  image[:, 3:11] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
  found = drawn.real_image({"image": image}, 4)
  expected = images.resize(images.to_float(image[:, 3:11]), 4)
  np.testing.assert_array_equal(found, images.to_uint8(expected))
  whole = drawn.real_image({"image": image}, 8)
  np.testing.assert_array_equal(whole, image[:, 3:11])


def test_an_image_that_cannot_be_decoded_is_none():
  read = drawn.reader([{"image": b"no image"}], 4)
  assert read(0) is None
