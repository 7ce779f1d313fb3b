"""Prepared datasets of anyone's, opened and read."""

import functools
import pathlib
import runpy

import numpy as np
import pytest

from imagen_jax.data import source
from imagen_jax.training.settings import Training

written = runpy.run_path(str(pathlib.Path(__file__).with_name("datasets.py")))
IMAGE, TEXT, TEXTS, TFDS = map(written.get, ("IMAGE", "TEXT", "TEXTS", "TFDS"))
png, some_records = written["png"], written["some_records"]
nested = written["nested"]


@pytest.fixture
def dataset(tmp_path):
  """Returns a function that writes a dataset below tmp_path."""
  return functools.partial(written["write_dataset"], tmp_path)


def load(tmp_path, split="train", **options):
  return source.load_source("my_set", split, tmp_path, **options)


def error_of(tmp_path, *args, **options):
  with pytest.raises(ValueError) as caught:
    load(tmp_path, *args, **options)
  said = str(caught.value)
  assert "\n" not in said and said.isprintable() and len(said) < 700
  return said


def tensor(dtype, *shape):
  dimensions = [str(n) for n in shape]
  return {
    "pythonClassName": TFDS + "tensor_feature.Tensor",
    "tensor": {
      "dtype": dtype,
      "encoding": "none",
      "shape": {"dimensions": dimensions} if shape else {},
    },
  }


def image(dtype):
  content = IMAGE["image"] | {"dtype": dtype}
  if dtype != "uint8":
    content["shape"] = {"dimensions": ["-1", "-1", "1"]}
  return IMAGE | {"image": content}


def test_only_the_features_that_are_used_are_decoded(dataset, tmp_path):
  records = [r | {"md5": b"\xff\xfe", "scene": b"s"} for r in some_records(4)]
  dataset(records, {"md5": tensor("string"), "scene": TEXT})
  records = load(tmp_path)
  assert len(records) == 4
  assert records[3] == {"image": png(3), "caption": "number 3"}
  records = load(tmp_path, features=("image", "caption", "scene"))
  assert records[0]["scene"] == "s"


@pytest.mark.parametrize(
  ("kind", "stored", "value"),
  [
    (TEXTS, [b"a", b"b"], ["a", "b"]),
    (TEXTS, [b"a"], ["a"]),
    (tensor("string"), b"a", "a"),
    (tensor("string", 2), [b"a", b"b"], ["a", "b"]),
  ],
)
def test_kinds_of_captions(dataset, tmp_path, kind, stored, value):
  dataset([{"image": png(), "caption": stored}], {"caption": kind})
  assert load(tmp_path)[0]["caption"] == value


def test_kinds_of_images(dataset, tmp_path):
  pixels = list(range(8 * 8 * 3))
  features = {"image": tensor("uint8", 8, 8, 3)}
  dataset([{"image": pixels, "caption": b"a"}], features)
  np.testing.assert_array_equal(
    load(tmp_path)[0]["image"], np.reshape(pixels, (8, 8, 3))
  )
  for name, kind in (("bytes", tensor("string")), ("deep", image("uint16"))):
    dataset(some_records(1), {"image": kind}, name=name)
    records = source.load_source(name, "train", tmp_path)
    assert records[0]["image"] == png(0)


CLASSES = {
  "pythonClassName": TFDS + "class_label_feature.ClassLabel",
  "classLabel": {"numClasses": "3"},
}


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"image": image("float32")}, r"is Image of float32 .*, expected uint8 or"),
    ({"image": tensor("float32", 8, 8, 3)}, "is Tensor of float32 .*an image"),
    ({"image": tensor("int64", 8, 8, 3)}, "is Tensor of int64 .*, expected an"),
    ({"image": nested(IMAGE)}, "'image' of dataset 'my_set' is Sequence of ui"),
    ({"caption": CLASSES}, "'caption' .* is ClassLabel of int64 .* text, or a"),
    ({"caption": nested(TEXTS)}, "'caption' .* is Sequence of text"),
    (
      {"caption": {
        "pythonClassName": TFDS + "features_dict.FeaturesDict",
        "featuresDict": {"features": {"en": TEXT}},
      }},
      "'caption' of dataset 'my_set' is FeaturesDict, expected text, or a list",
    ),
  ],
)  # fmt: skip
def test_features_that_cannot_be_used(dataset, tmp_path, change, said):
  dataset(some_records(1), change)
  with pytest.raises(ValueError, match=said):
    load(tmp_path)


def test_a_missing_feature_is_named_beside_those_that_are_there(
  dataset, tmp_path
):
  folder = dataset(some_records(1))
  text = (folder / "features.json").read_text()
  (folder / "features.json").write_text(text.replace('"caption"', '"text\\n"'))
  assert error_of(tmp_path) == (
    "dataset 'my_set' has no feature 'caption', only image, 'text\\n'"
  )


@pytest.mark.parametrize(
  ("split", "numbers"),
  [
    ("train[:10%]", range(2)),
    ("train[5:8]", range(5, 8)),
    ("train[-10%:]", range(18, 20)),
    ("train[:2]+train[18:]", [0, 1, 18, 19]),
  ],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_parts_of_a_split(dataset, tmp_path, split, numbers, shards):
  dataset(some_records(20), shards=shards)
  records = load(tmp_path, split)
  found = [record["caption"] for record in records]
  assert found == [f"number {i}" for i in numbers]
  with pytest.raises(IndexError, match=f"is none of the {len(found)}"):
    records[len(found)]


@pytest.mark.parametrize(
  ("split", "said"),
  [
    (
      "test",
      "my_set has no split 'test', only train: change train.sample_split",
    ),
    ("test[:1]", "train.sample_split is 'test[:1]', which cannot be read: "),
    ("train[", "train.sample_split is 'train[', which cannot be read: "),
    (
      "train[:200%]",
      "train.sample_split is 'train[:200%]', which cannot be re",
    ),
    (
      "train[7:9]",
      "train.sample_split is 'train[7:9]', which cannot be read: ",
    ),
    ("", "train.sample_split is '', which cannot be read: "),
    (
      "train[:0]",
      "train.sample_split is 'train[:0]', in which 'my_set' has no",
    ),
  ],
)
def test_a_wrong_split_names_the_key_to_change(dataset, tmp_path, split, said):
  dataset(some_records(2))
  assert error_of(tmp_path, split, key="train.sample_split").startswith(said)


def test_of_several_splits_the_first_that_exists_is_read(dataset, tmp_path):
  """As train.sample_split takes what prepare or TFDS made."""
  dataset(some_records(2))
  assert len(load(tmp_path, ("test", "train"))) == 2
  wanted = Training().sample_splits
  assert wanted == ("test", "validation")
  assert Training(sample_split="train[:1]").sample_splits == ("train[:1]",)
  assert error_of(tmp_path, wanted, key="train.sample_split") == (
    "my_set has no split 'test' or 'validation', only train: change"
    " train.sample_split"
  )
  endless = lambda split: source.load_source(source.ENDLESS, split, tmp_path)[0]
  assert (
    endless(("validation", "test"))["caption"] == endless("test")["caption"]
  )


def test_another_format_is_advised_to_be_converted(dataset, tmp_path):
  folder = dataset(some_records(1), kind="tfrecord")
  assert error_of(tmp_path) == (
    "dataset 'my_set' is stored as tfrecord, expected array_record: convert it"
    f" once by python -m imagen_jax.prepare --source={folder} --output=DIR"
  )


def test_a_converted_data_set_is_read(dataset, tmp_path):
  """Where the script adds our format beside the first."""
  info = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
  dataset(some_records(2), info=info)
  assert load(tmp_path)[1]["caption"] == "number 1"


@pytest.mark.parametrize(
  ("name", "said"),
  [
    (
      "captioned_shapes/tiny:9.9.9",
      "cannot be loaded at version 9.9.9, only: 1",
    ),
    ("captioned_shapes/huge", "it has no config 'huge', only full, tiny$"),
    ("a b", "is not a name, expected NAME"),
    ("../my_set", "has no dataset_info.json, expected a folder that"),
    ("my_set/data_dir=a", "data_dir is no part of a name"),
    ("nobody:my_set", "it is not known to TFDS, nor prepared in "),
    ("my_sett", "it is not known to TFDS, nor prepared in "),
  ],
)
def test_names_that_cannot_be(tmp_path, name, said):
  with pytest.raises(ValueError, match=f"^dataset {name!r}.* {said}"):
    source.load_source(name, "train", tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["{}", "./data/1.0.0", "data/1.0.0"])
def test_a_prepared_folder_is_opened_by_its_path(tmp_path, monkeypatch, name):
  folder = written["write_dataset"](tmp_path, some_records(3), name="data")
  monkeypatch.chdir(tmp_path)
  found = source.load_source(name.format(folder), "train", tmp_path / "other")
  assert [record["caption"] for record in found] == [
    "number 0", "number 1", "number 2",
  ]  # fmt: skip
