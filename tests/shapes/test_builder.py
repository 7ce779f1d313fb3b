import io
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from imagen_jax.data import prepared, source
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
  records = source.load_source(
    "captioned_shapes/tiny",
    split,
    data_dir,
    features=("image", "caption", "scene"),
  )
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
  monkeypatch.setattr(source, "_open", lambda *args: seen.append(args))
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
  """A dataset of another author, with a number beside image and caption."""

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
    if self.builder_config.name != "silent":
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
    if self.builder_config.name != "silent":
      example["caption"] = "a grüner Kreis"
    yield 0, example


def test_a_dataset_with_more_than_text(tmp_path):
  record = source.load_source("other/captioned", "train", tmp_path)[0]
  assert record["caption"] == "a grüner Kreis" and "label" not in record
  assert isinstance(record["image"], bytes)


def test_a_dataset_without_captions(tmp_path):
  with pytest.raises(
    ValueError, match="'other/silent' has no feature 'caption'"
  ):
    source.load_source("other/silent", "train", tmp_path)


def test_a_dataset_that_only_tensorflow_can_prepare(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)  # refuses its import
  said = "'other/arrays' cannot be (opened|prepared): that needs TensorFlow"
  with pytest.raises(ValueError, match=said):
    source.load_source("other/arrays", "train", tmp_path)


def test_another_process_may_prepare_the_dataset_first(tmp_path, monkeypatch):
  """As two trainings do that are started together."""
  prepare = tfds.core.DatasetBuilder.download_and_prepare

  def lose(self):
    prepare(source._open("captioned_shapes/tiny", str(tmp_path)))
    raise FileExistsError

  monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lose)
  records = source.load_source("captioned_shapes/tiny", "train", tmp_path)
  assert len(records) == 64


def test_a_dataset_in_another_format_is_said_to_be(tmp_path):
  other = tfds.builder(
    "other/captioned", data_dir=tmp_path, file_format="parquet"
  )
  other.download_and_prepare()
  said = "dataset 'other/captioned' is stored as parquet, expected array_record"
  with pytest.raises(ValueError, match=said):
    source.load_source("other/captioned", "train", tmp_path)


def test_unknown_split_and_dataset(data_dir):
  with pytest.raises(ValueError, match="tiny has no split 'val', only train, "):
    source.load_source("captioned_shapes/tiny", "val", data_dir)
  with pytest.raises(ValueError, match="captioned_shapez' .* not known to"):
    source.load_source("captioned_shapez", "train", data_dir)
  with pytest.raises(ValueError, match="has no config 'huge', only full, tiny"):
    source.load_source("captioned_shapes/huge", "train", data_dir)


class Manual(Other):
  """A dataset whose files are to be fetched by hand, as laion400m's."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask for the files.\nPut them there."

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(dl_manager.manual_dir)}


class Far(Other):
  """A dataset on a server that cannot be reached."""

  def _split_generators(self, dl_manager):
    raise ConnectionError("HTTPSConnectionPool: no route\n" + "x" * 9999)


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("manual/captioned", "Manual directory .* Ask for the files. Put them "),
    ("far/captioned", "'HTTPSConnectionPool: no route xxx"),
    ("manual/silent", "has no feature 'caption', only image, label"),
    ("far/silent", "has no feature 'caption', only image, label"),
  ],
)
def test_what_cannot_be_prepared_is_one_sentence(tmp_path, name, said):
  """Its features come first, before anything is fetched."""
  with pytest.raises(ValueError, match=f"^dataset {name!r} .*{said}") as caught:
    source.load_source(name, "train", tmp_path)
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
  assert "silent" not in name or not list(tmp_path.iterdir())


def test_what_a_killed_preparation_left_is_removed(tmp_path):
  folder = tmp_path / "captioned_shapes" / "tiny"
  for name in ("incomplete.ABCDEF_1.0.0", "incomplete.ABCDEF_2.0.0", "notes"):
    (folder / name).mkdir(parents=True)
    (folder / name / "file").touch()
  source.load_source("captioned_shapes/tiny", "train", tmp_path)
  found = {path.name for path in folder.iterdir() if path.is_dir()}
  assert found == {"1.0.0", "incomplete.ABCDEF_2.0.0", "notes"}


def test_one_process_prepares_and_the_others_wait(tmp_path):
  """Threads here: each opens the lock for itself, as processes do."""
  order = []

  def prepare(number):
    with prepared.alone(tmp_path / "set" / "1.0.0"):
      order.append(number)
      left = tmp_path / "set" / f"incomplete.{number}_1.0.0"
      left.mkdir()
      started.set()
      assert go_on.wait(60)
      assert left.exists()  # nobody else removed it
      order.append(number)

  started, go_on = threading.Event(), threading.Event()
  threads = [threading.Thread(target=prepare, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  assert started.wait(60)
  go_on.set()
  for thread in threads:
    thread.join()
  assert order[::2] == order[1::2] and sorted(order[::2]) == [0, 1, 2]


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(prepared.fcntl, "flock", refuse)
  left = tmp_path / "incomplete.A_1.0.0"
  left.mkdir()
  with prepared.alone(tmp_path / "1.0.0"):
    pass
  assert left.exists()
