"""Folders of datasets that come from anyone: what they name is not trusted."""

import functools
import json
import pathlib
import runpy
import sys

import pytest

from imagen_jax.data import source

written = runpy.run_path(str(pathlib.Path(__file__).with_name("datasets.py")))
IMAGE, TEXT, TFDS = map(written.get, ("IMAGE", "TEXT", "TFDS"))
nested, some_records = written["nested"], written["some_records"]
load = functools.partial(source.load_source, "my_set", "train")


@pytest.fixture
def dataset(tmp_path):
  """Returns a function that writes a dataset below tmp_path."""
  return functools.partial(written["write_dataset"], tmp_path)


def error_of(tmp_path):
  with pytest.raises(ValueError) as caught:
    load(tmp_path)
  said = str(caught.value)
  assert "\n" not in said and said.isprintable() and len(said) < 700
  return said


@pytest.fixture
def payload(tmp_path, monkeypatch):
  """The name of a module on the path that must not be imported."""
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "payload.py").write_text("raise SystemExit('it ran')")
  yield "payload"
  assert "payload" not in sys.modules


EVIL = {"pythonClassName": "payload.Evil", "jsonFeature": {"json": "{}"}}
OLD = {"type": "payload.Evil", "content": {}}
AS_JSON = {
  "pythonClassName": TFDS + "features_dict.FeaturesDict",
  "jsonFeature": {"json": json.dumps({"a": OLD})},
}
AS_TEXT = {
  "type": TFDS + "features_dict.FeaturesDict",
  "proto_cls": "tensorflow_datasets.FeaturesDict",
  "content": json.dumps({"features": {"a": EVIL}}),
}


@pytest.mark.parametrize(
  "feature",
  [
    EVIL,
    OLD,
    {"python_class_name": "payload.Evil", "text": {}},
    {"pythonClassName": "tensorflow_datasets.core.features..payload.Evil"},
    {"pythonClassName": "payload.tensorflow_datasets.core.features.Evil"},
    nested(EVIL),
    nested(nested(OLD)),
    AS_JSON,
    AS_TEXT,
    nested(AS_TEXT),
  ],
)
@pytest.mark.parametrize("where", ["caption", "other", "info"])
def test_no_code_of_a_data_set_runs(dataset, tmp_path, payload, feature, where):
  """TFDS imports what features.json names, and dataset_info.json's features."""
  if where == "info":
    dataset(some_records(1), info={"features": feature})
  else:
    dataset(some_records(1), {where: feature})
  said = error_of(tmp_path)
  name = "dataset_info.json" if where == "info" else "features.json"
  assert said.startswith(f"dataset file {tmp_path}/my_set/1.0.0/{name} names")
  assert "which would run code: expected features of tensorflow_data" in said


def test_no_code_of_another_config_or_version_runs(dataset, tmp_path, payload):
  folder = dataset(some_records(1), {"caption": EVIL})
  folder.parent.rename(tmp_path / "config")
  (tmp_path / "my_set").mkdir()
  (tmp_path / "config").rename(tmp_path / "my_set" / "config")
  for name in ("my_set/config", "MySet/config", "my_set/config:1.0.0"):
    with pytest.raises(ValueError, match="would run code"):
      source.load_source(name, "train", tmp_path)


def test_no_code_of_a_folder_that_is_named_runs(
  dataset, tmp_path, payload, monkeypatch
):
  folder = dataset(some_records(1), {"caption": EVIL})
  monkeypatch.chdir(tmp_path)
  for name in (str(folder), "./my_set/1.0.0", "my_set/1.0.0"):
    with pytest.raises(ValueError, match="would run code"):
      source.load_source(name, "train", tmp_path / "other")


def test_a_default_config_elsewhere_is_not_opened(dataset, tmp_path, payload):
  dataset(some_records(1), {"caption": EVIL}, name="elsewhere")
  config = tmp_path / "my_set" / ".config"
  config.mkdir(parents=True)
  (config / "metadata.json").write_text(
    json.dumps({"default_config_name": "../elsewhere"})
  )
  assert "'../elsewhere', expected the name of a folder" in error_of(tmp_path)


def test_types_of_other_things_are_no_classes(dataset, tmp_path):
  statistics = {"type": "STRING", "name": "caption"}
  schema = {"feature": [{"name": "caption", "type": "BYTES"}]}
  info = {"schema": schema, "description": '{"type": "a"}'}
  dataset(some_records(2), info=info, statistics={"features": [statistics]})
  assert load(tmp_path)[1]["caption"] == "number 1"


def test_the_module_of_a_data_set_is_not_imported(dataset, tmp_path, payload):
  dataset(some_records(2), info={"moduleName": "payload"})
  assert load(tmp_path)[1]["caption"] == "number 1"


@pytest.mark.parametrize(
  "change",
  [
    {"filepathTemplate": "/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"},
    {"filepathTemplate": "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"},
    {"filepathTemplate": "a/../../{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"},
    {"info": {"name": "../my_set"}},
  ],
)
def test_files_of_other_folders_are_not_read(dataset, tmp_path, change):
  dataset(some_records(1), **change)
  said = error_of(tmp_path)
  assert said.endswith("expected one in its own folder"), said


@pytest.mark.parametrize(
  ("file", "text", "said"),
  [
    ("dataset_info.json", "", "dataset info .* is not JSON: Expecting value"),
    ("dataset_info.json", "[]", "dataset info .* holds no object"),
    ("dataset_info.json", '{"name": 3}', "'my_set' cannot be opened: "),
    ("dataset_info.json", '{"splits": 3}', "'my_set' cannot be opened: "),
    ("dataset_info.json", "[" * 200_000, "is nested too deeply, expected"),
    ("features.json", "", "dataset features .* is not JSON: Expecting value"),
    ("features.json", "{}", "'my_set' cannot be opened: "),
    ("features.json", '{"a":' * 99_999, "is nested too deeply|not JSON"),
  ],
)
def test_damaged_descriptions_are_one_sentence(
  dataset, tmp_path, file, text, said
):
  folder = dataset(some_records(1))
  (folder / file).write_text(text)
  with pytest.raises(ValueError, match=said):
    load(tmp_path)


def test_half_a_folder_is_named(dataset, tmp_path):
  folder = dataset(some_records(1))
  (folder / "dataset_info.json").unlink()
  assert str(folder / "dataset_info.json") in error_of(tmp_path)
  folder = tmp_path / "captioned_shapes" / "tiny" / "1.0.0"  # could be prepared
  folder.mkdir(parents=True)
  with pytest.raises(
    ValueError, match=f"{folder} has no dataset_info.json: re"
  ):
    source.load_source("captioned_shapes/tiny", "train", tmp_path)
