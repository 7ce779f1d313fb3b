"""Examples of captioned_shapes that are drawn when they are read."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.pipeline import make_batches
from imagen_jax.data.source import load_source
from imagen_jax.shapes import captioned_shapes_dataset_builder as builder
from imagen_jax.shapes import scenes
from imagen_jax.shapes.examples import Endless, draw_example


def tokenize(captions):
  ids = np.array([[len(caption)] for caption in captions], np.int32)
  return ids, ids > 0


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_the_first_are_the_stored_ones(split, tmp_path_factory):
  folder = tmp_path_factory.getbasetemp() / "endless"  # prepared once
  features = ("image", "caption", "scene")
  stored = load_source(
    "captioned_shapes/tiny", split, folder, features=features
  )
  endless = load_source("captioned_shapes/endless", split, folder)
  for i in (0, 1, len(stored) - 1):
    drawn, read = endless[i], stored[i]
    image = np.asarray(Image.open(io.BytesIO(read["image"])))
    np.testing.assert_array_equal(drawn["image"], image)
    assert drawn["caption"] == read["caption"]
    assert drawn["scene"] == read["scene"]


def test_an_example_depends_on_its_index_alone():
  """For every reader, after whatever else."""
  last = len(Endless("train")) - 1
  one, two = Endless("train"), Endless("train")
  first = [one[i] for i in (5, last, 20_000)]
  again = [two[i] for i in (20_000, 5, last)]
  for a, b in zip(first, [again[1], again[2], again[0]], strict=True):
    np.testing.assert_array_equal(a.pop("image"), b.pop("image"))
    assert a == b
  assert len({example["scene"] for example in first}) == 3


def test_past_the_stored_ones_test_unseen_stays_unseen():
  """The builder's test holds it for the first; here for those that follow."""
  for split in scenes.SPLITS:
    for i in range(20_000, 20_040):
      scene, _ = scenes.from_json(Endless(split)[i]["scene"])
      held = {scenes.held_out(*combo) for combo in scenes.combos(scene)}
      assert held == {split == "test_unseen"}


def test_indices_and_splits_that_are_not_there():
  examples = Endless("test")
  for i in (-1, len(examples)):
    with pytest.raises(IndexError, match=f"example {i} is none of the 1000000"):
      examples[i]
  for make in (Endless, lambda split: draw_example(split, 0)):
    with pytest.raises(ValueError, match="split is 'val', expected one of "):
      make("val")
  with pytest.raises(ValueError, match="split is 'val', expected one of "):
    load_source("captioned_shapes/endless", "val", "unused")


def test_batches_of_endless_examples():
  """Equal when resumed, without repetition, and never kept in memory."""
  source = Endless("train")
  options = dict(size=16, tokenize=tokenize, global_batch=4, seed=1)
  whole = list(itertools.islice(make_batches(source, **options), 4))
  resumed = next(make_batches(source, start_step=3, **options))
  np.testing.assert_array_equal(resumed["image"], whole[3]["image"])
  images = {image.tobytes() for batch in whole for image in batch["image"]}
  assert len(images) == 16
  with pytest.raises(ValueError, match="1,000,000,000 images in memory, expec"):
    make_batches(source, cache=True, **options)


def test_the_stored_image_is_a_png_of_the_drawn_one():
  image = np.asarray(Image.open(builder.example("train", 3)["image"]))
  np.testing.assert_array_equal(image, draw_example("train", 3)["image"])
