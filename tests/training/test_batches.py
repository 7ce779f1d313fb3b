"""The datasets of a run: opened by their parts, and noticed if they change."""

import dataclasses
import pathlib
import runpy

import pytest

from imagen_jax.checkpoints.config_changes import config_changes
from imagen_jax.training import batches
from imagen_jax.training.settings import Data, Part

FOLDER = pathlib.Path(__file__).parents[1] / "data"
written = runpy.run_path(str(FOLDER / "datasets.py"))
some_records, write = written["some_records"], written["write_dataset"]
png = written["png"]


def change(records, kind):
  """Changes a dataset as people do, most of them without its number."""
  records = [dict(record) for record in records]
  if kind == "more":
    records.append(records[0])
  elif kind == "other":
    records = [r | {"image": png(9, side=17)} for r in records]
  elif kind == "order":
    records.reverse()
  else:
    assert kind == "same"
  return records


@pytest.mark.parametrize("kind", ["more", "other", "order", "size", "same"])
def test_a_dataset_that_changed_is_noticed(tmp_path, kind):
  records = some_records(20)
  write(tmp_path / "a", records, shards=1, numBytes="7")
  # Another folder and other shards are no change.
  size, new = ("8", records) if kind == "size" else ("7", change(records, kind))
  write(tmp_path / "b", new, shards=2, numBytes=size)
  old = Data(name="my_set", data_dir=str(tmp_path / "a"))
  new = dataclasses.replace(old, data_dir=str(tmp_path / "b"))
  a, b = ({"dataset": batches.fingerprints(each)} for each in (old, new))
  said = config_changes(a, b)
  assert bool(said) == (kind != "same")
  if said:
    assert said.startswith("dataset was ['my_set, train: 20 records (")
    assert said.count("records (") == 2
  # A checkpoint of an older version has none.
  assert config_changes({}, b) == ""


def test_parts_are_opened_by_their_own_settings(tmp_path):
  write(tmp_path, some_records(3), name="a")
  write(tmp_path, [{"image": png(), "caption": [b"b"]}] * 4,
        {"caption": written["TEXTS"]}, name="b")  # fmt: skip
  data = Data(
    data_dir=str(tmp_path), template="a {}",
    mixture=(Part("a", 3.0, split="train[:2]"), Part("b", template="{}")),
  )  # fmt: skip
  found = batches.open_sources(data, "train", captions=True).ingredients
  assert [(each.name, each.weight) for each in found] == [("a", 3), ("b", 1)]
  assert [len(each.records) for each in found] == [2, 4]
  assert found[0].records[1]["caption"] == "a number 1"
  assert found[1].records[0]["caption"] == ["b"]
  prints = batches.fingerprints(data)
  assert [text.partition(" (")[0] for text in prints] == [
    "a, train[:2]: 2 records", "b, train: 4 records",
  ]  # fmt: skip
  # Held-out images are those of the same split of every part.
  keys = {"train.sample_split": ("test", "validation")}
  with pytest.raises(ValueError, match="^a has no split 'test' or 'validat"):
    batches.check_splits(data, keys, captions=True)


def test_examples_that_are_drawn_follow_from_their_split():
  data = Data(name="captioned_shapes/endless")
  expected = ["captioned_shapes/endless, train: endless train"]
  assert batches.fingerprints(data) == expected
