import io

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import source
from imagen_jax.data.captioned_shapes import (
  captioned_shapes_dataset_builder as builder,
)
from imagen_jax.data.captioned_shapes import drawing, scenes


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("tfds")


@pytest.mark.parametrize(
  ("split", "size"), [("train", 64), ("test", 16), ("test_unseen", 16)]
)
def test_records_of_the_tiny_dataset(data_dir, split, size):
  records = source.load_source("captioned_shapes/tiny", split, data_dir)
  assert len(records) == size
  for i in (0, size - 1):
    record = records[i]
    assert isinstance(record["caption"], str)
    scene, placed = scenes.from_json(record["scene"])
    image = np.asarray(Image.open(io.BytesIO(record["image"])))
    np.testing.assert_array_equal(image, drawing.draw(scene, placed))
    unseen = [scenes.held_out(*c) for c in scenes.combos(scene)]
    assert set(unseen) == {split == "test_unseen"}
    # Record i of a split is a function of the two.
    expected = builder.example(split, i)
    assert record["caption"] == expected["caption"]
    assert record["scene"] == expected["scene"]


def test_a_prepared_dataset_is_only_read(data_dir):
  source.load_source("captioned_shapes/tiny", "train", data_dir)
  before = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*")}
  source.load_source("captioned_shapes/tiny", "train", data_dir)
  assert before == {p: p.stat().st_mtime_ns for p in data_dir.rglob("*")}
  assert any(".array_record" in p.name for p in before)


def test_the_default_is_the_whole_dataset():
  config = builder.Builder.builder_configs["full"]
  assert builder.Builder.BUILDER_CONFIGS[0] is config  # the default
  assert (config.train, config.test) == (20_000, 2_000)


def test_splits_differ():
  texts = {builder.example(s, 0)["scene"] for s in scenes.SPLITS}
  assert len(texts) == len(scenes.SPLITS)


def test_unknown_split_and_dataset(data_dir):
  with pytest.raises(ValueError, match="tiny has no split 'val', only train, "):
    source.load_source("captioned_shapes/tiny", "val", data_dir)
  with pytest.raises(ValueError, match="dataset 'captioned_shapez' is not"):
    source.load_source("captioned_shapez", "train", data_dir)
  with pytest.raises(ValueError, match="'captioned_shapes/huge' is not"):
    source.load_source("captioned_shapes/huge", "train", data_dir)
