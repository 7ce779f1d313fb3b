import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from imagen_jax.data import source
from imagen_jax.shapes import captioned_shapes_dataset_builder as builder
from imagen_jax.shapes import drawing, scenes
from imagen_jax.training import settings


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


def test_tfds_own_variable_names_the_folder(data_dir, tmp_path, monkeypatch):
  """Where the config leaves it at its default."""
  default = settings.Data.data_dir
  load = lambda folder: source.load_source(
    "captioned_shapes/tiny", "train", folder
  )
  load(data_dir)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  assert len(load(default)) == 64
  assert not (tmp_path / "home").exists()
  assert len(load(tmp_path / "mine")) == 64
  assert (tmp_path / "mine" / "captioned_shapes").is_dir()
  monkeypatch.setenv("TFDS_DATA_DIR", "")
  seen = []
  monkeypatch.setattr(source, "_builder", lambda *args: seen.append(args))
  with pytest.raises(AttributeError):
    load(default)
  home = f"{tmp_path}/home/tensorflow_datasets"
  assert seen == [("captioned_shapes/tiny", home)]


def test_the_default_is_the_whole_dataset():
  config = builder.Builder.builder_configs["full"]
  assert builder.Builder.BUILDER_CONFIGS[0] is config  # the default
  assert (config.train, config.test) == (20_000, 2_000)


def test_splits_differ():
  texts = {builder.example(s, 0)["scene"] for s in scenes.SPLITS}
  assert len(texts) == len(scenes.SPLITS)


class Other(tfds.core.GeneratorBasedBuilder):
  """A dataset of somebody else's, with a number beside picture and caption."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name)
    for name in ("captioned", "silent", "arrays")
  ]

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(4, 4, 3)),
      "label": tfds.features.ClassLabel(num_classes=3),
    }
    if self.builder_config.name == "captioned":
      features["caption"] = tfds.features.Text()
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    image = np.zeros((4, 4, 3), np.uint8)
    if self.builder_config.name != "arrays":  # which TensorFlow encodes
      png = io.BytesIO()
      Image.fromarray(image).save(png, "png")
      png.seek(0)
      image = png
    example = {"image": image, "label": 2}
    if self.builder_config.name == "captioned":
      example["caption"] = "a grüner Kreis"
    yield 0, example


def test_a_dataset_with_more_than_text(tmp_path):
  record = source.load_source("other/captioned", "train", tmp_path)[0]
  assert record["caption"] == "a grüner Kreis" and record["label"] == 2
  assert isinstance(record["image"], bytes)


def test_a_dataset_without_captions(tmp_path):
  with pytest.raises(
    ValueError, match="'other/silent' has no feature 'caption'"
  ):
    source.load_source("other/silent", "train", tmp_path)


def test_a_dataset_that_only_tensorflow_can_prepare(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)  # refuses its import
  said = "'other/arrays' can be prepared only where TensorFlow is installed"
  with pytest.raises(ValueError, match=said):
    source.load_source("other/arrays", "train", tmp_path)


def test_another_process_may_prepare_the_dataset_first(tmp_path, monkeypatch):
  """As two trainings do that are started together."""
  prepare = tfds.core.DatasetBuilder.download_and_prepare

  def lose(self):
    prepare(source._builder("captioned_shapes/tiny", str(tmp_path)))
    raise FileExistsError

  monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lose)
  records = source.load_source("captioned_shapes/tiny", "train", tmp_path)
  assert len(records) == 64


def test_a_dataset_in_another_format_is_said_to_be(tmp_path):
  other = tfds.builder(
    "other/captioned", data_dir=tmp_path, file_format="parquet"
  )
  other.download_and_prepare()
  said = "dataset 'other/captioned' cannot be opened: File format is already"
  with pytest.raises(ValueError, match=said):
    source.load_source("other/captioned", "train", tmp_path)


def test_unknown_split_and_dataset(data_dir):
  with pytest.raises(ValueError, match="tiny has no split 'val', only train, "):
    source.load_source("captioned_shapes/tiny", "val", data_dir)
  with pytest.raises(ValueError, match="dataset 'captioned_shapez' is not"):
    source.load_source("captioned_shapez", "train", data_dir)
  with pytest.raises(
    ValueError, match="huge' cannot be opened: BuilderConfig hu"
  ):
    source.load_source("captioned_shapes/huge", "train", data_dir)
