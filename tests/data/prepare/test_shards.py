"""Shards, duplicates, filters and splits, and what ends on the way."""

import contextlib
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from sources import encode, write_folder

from imagen_jax.data import images
from imagen_jax.data.prepare import shards
from imagen_jax.data.prepare.filters import Dropped, Filters
from imagen_jax.data.prepare.finish import finish
from imagen_jax.data.prepare.rows import Record
from imagen_jax.data.prepare.sources import open_source
from imagen_jax.data.source import load_source


def planned(folder, output, per_part=3, **options):
  source, output = open_source(folder, per_part=per_part), epath.Path(output)
  options = {"duplicates": False, "validation": 0.3} | options
  plan = shards.make_plan(source, Filters(), **options)
  shards.keep_plan(plan, output)
  return source, plan


def prepare(folder, output, order=None, **options):
  source, plan = planned(folder, output, **options)
  output = epath.Path(output)
  for i in order or range(plan.count):
    shards.write_shard(source, plan, output, i)
  return finish(plan, output)


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


@pytest.fixture
def source(tmp_path):
  folder = write_folder(tmp_path / "in", 10)
  shutil.copy(folder / "001.png", folder / "007.png")
  (folder / "007.txt").write_text("number 1")
  return folder


def test_any_order_gives_the_same_bytes(source, tmp_path):
  prepare(source, tmp_path / "a")
  prepare(source, tmp_path / "b", order=[3, 1, 0, 2])
  assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_tfds_and_our_reader_read_it_alike(source, tmp_path):
  prepare(source, tmp_path / "out")
  builder = tfds.builder_from_directory(tmp_path / "out")
  assert [*builder.info.splits] == ["train", "validation"]
  keys = []
  for split in builder.info.splits:
    theirs = builder.as_data_source(split=split)
    ours = load_source(f"{tmp_path}/out", split, "")
    assert len(theirs) == len(ours) == builder.info.splits[split].num_examples
    for a, b in zip(theirs, ours, strict=True):
      np.testing.assert_array_equal(a["image"], images.decode(b["image"]))
      assert [text.decode() for text in a["caption"]] == b["caption"]
      keys.append(a["key"].decode())
  # The first of two equal records stays.
  assert sorted(keys) == [f"{i:03}.png" for i in range(10) if i != 7]
  report = (tmp_path / "out" / "report.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in report] == [
    {
      "key": "007.png", "kind": "duplicate",
      "reason": "the same image and caption as 001.png",
    }
  ]  # fmt: skip


def test_duplicates_stay_if_they_are_wanted(source, tmp_path):
  prepare(source, tmp_path / "out", duplicates=True, validation=0)
  assert len(load_source(f"{tmp_path}/out", "train", "")) == 10


def test_the_same_again_changes_nothing(source, tmp_path):
  prepare(source, tmp_path / "out")
  before = contents(tmp_path / "out")
  prepare(source, tmp_path / "out")
  assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_what_ends_anywhere_is_resumed_with_the_same_bytes(
  source, tmp_path, monkeypatch, at
):
  """At each of its writes, as by kill -9: no clean-up, files half written."""
  prepare(source, tmp_path / "whole")
  count = 0

  class Killed(BaseException):
    pass

  def dying(function):
    def call(*args, **options):
      nonlocal count
      count += 1
      if count == at:
        raise Killed
      return function(*args, **options)

    return call

  with monkeypatch.context() as patch:
    for name in ("replace", "unlink"):
      patch.setattr(os, name, dying(getattr(os, name)))
    patch.setattr(shards.files, "write", dying(shards.files.write))
    with contextlib.suppress(Killed):
      prepare(source, tmp_path / "out")
  finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("0*")}
  prepare(source, tmp_path / "out")
  found = contents(tmp_path / "out")
  assert {k: v for k, v in found.items() if ".part" not in k} == contents(
    tmp_path / "whole"
  )
  assert finished == {p: p.stat().st_mtime_ns for p in finished}


def test_a_source_or_settings_that_changed_are_refused(source, tmp_path):
  prepare(source, tmp_path / "out")
  with pytest.raises(ValueError, match="begun with other validation, expected"):
    prepare(source, tmp_path / "out", validation=0.5)
  (source / "000.txt").unlink()
  with pytest.raises(ValueError, match="other files of the source, expected"):
    prepare(source, tmp_path / "out")


def test_an_output_of_another_program_is_refused(source, tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "dataset_info.json").write_text("{}")
  with pytest.raises(ValueError, match="has a dataset that is not of this"):
    prepare(source, tmp_path / "out")


def test_missing_and_damaged_shards_are_named(source, tmp_path):
  out = epath.Path(tmp_path / "out")
  work, plan = planned(source, out)
  shards.write_shard(work, plan, out, 0)
  with pytest.raises(ValueError, match="3 of 4 shards are missing in .*is 1:"):
    finish(plan, out)
  for i in range(plan.count):
    shards.write_shard(work, plan, out, i)
  path = shards.shard_path(out, plan, "train", 1)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match=f"shard {path} is damaged .*expected"):
    finish(plan, out)
  shards.sidecar_path(out, 1).unlink()
  shards.write_shard(work, plan, out, 1)
  finish(plan, out)


def test_two_writers_of_shards_may_work_at_once_but_only_one_finishes(tmp_path):
  out = epath.Path(tmp_path / "out")
  (tmp_path / "out").mkdir()
  parts = [
    tmp_path / "out" / ".0.part",
    tmp_path / "out" / "shards" / ".1.part",
  ]
  parts[1].parent.mkdir()
  with shards.holding(out, alone=False), shards.holding(out, alone=False):
    for part in parts:
      part.touch()
    with (
      pytest.raises(ValueError, match="out is in use by another process"),
      shards.holding(out, alone=True),
    ):
      pass
    assert all(part.exists() for part in parts)
  with shards.holding(out, alone=True):
    assert not any(part.exists() for part in parts)  # a killed process left it
    with (
      pytest.raises(ValueError, match="out is in use by another process"),
      shards.holding(out, alone=False),
    ):
      pass


def test_a_full_disk_is_one_sentence_and_leaves_no_half_shard(
  source, tmp_path, monkeypatch
):
  class Full:
    def __init__(self, path, options):
      pass

    def write(self, data):
      raise RuntimeError("write() failed: No space left on device")

    def close(self):
      raise RuntimeError("close() failed: No space left on device")

  out = epath.Path(tmp_path / "out")
  work, plan = planned(source, out)
  monkeypatch.setattr(shards.array_record_module, "ArrayRecordWriter", Full)
  with pytest.raises(ValueError, match="images-.*cannot be written.*No space"):
    shards.write_shard(work, plan, out, 0)
  assert [*contents(tmp_path / "out")] == ["plan.json"]


def test_a_split_follows_from_the_key_and_has_its_share(tmp_path, source):
  _, plan = planned(source, tmp_path / "out", validation=0.1)
  found = [plan.split(f"{i}.png") for i in range(2000)]
  assert 150 < found.count("validation") < 250
  assert found == [plan.split(f"{i}.png") for i in range(2000)]


def test_names_and_captions_that_are_not_unicode(tmp_path):
  folder = write_folder(tmp_path / "in", 3)
  odd = os.fsdecode(b"caf\xe9")
  (folder / "000.png").rename(folder / f"{odd}.png")
  (folder / "000.txt").rename(folder / f"{odd}.txt")
  (folder / f"{odd}2.txt").write_text("lonely")
  prepare(folder, tmp_path / "out", validation=0)
  records = load_source(f"{tmp_path}/out", "train", "", features=("key",))
  assert [r["key"] for r in records] == ["001.png", "002.png", "caf?.png"]
  report = (tmp_path / "out" / "report.jsonl").read_text("ascii")
  assert json.loads(report)["key"] == f"{odd}2.txt"
  with pytest.raises(Dropped, match="caption is not Unicode text"):
    Filters().check(Record("a", encode(), ("\ud800",)))


def test_a_list_of_records_that_is_damaged_is_named(source, tmp_path):
  prepare(source, tmp_path / "out")
  path = shards.sidecar_path(epath.Path(tmp_path / "out"), 2)
  for data, said in (("{}", "is damaged: remove it"), ("[", "is not JSON")):
    path.write_text(data)
    with pytest.raises(ValueError, match=f"list of records {path} {said}"):
      prepare(source, tmp_path / "out")


def test_no_record_left_is_an_error_that_counts_reasons(tmp_path):
  folder = write_folder(tmp_path / "in", 2)
  for path in folder.glob("*.png"):
    path.write_bytes(b"")
  with pytest.raises(ValueError, match=r"no record is left .*\(bad image: 2\)"):
    prepare(folder, tmp_path / "out")


TEXTS = ("abc", " ", "abcdef")
COLUMNS = {"s": "0.3", "n": float("nan"), "h": 10**400}
RECORD = Record("a", encode(size=(40, 10)), TEXTS, COLUMNS)


@pytest.mark.parametrize(
  ("settings", "reason"),
  [
    ({}, None),
    (dict(least_side=10, most_aspect=4, least_caption=3, most_caption=5), None),
    (dict(at_least={"s": 0.3}, at_most={"s": 0.3}), None),
    (
      dict(least_side=11),
      "image has 40 x 10 pixels, expected at least 11 on each side",
    ),
    (
      dict(most_pixels=399),
      "image bytes cannot be decoded (40 x 10 pixels, expected at most"
      " max_pixels, 399)",
    ),
    (
      dict(most_aspect=3.9),
      "image has 40 x 10 pixels, expected sides within a ratio of 3.9",
    ),
    (dict(least_caption=7), "caption has 3 characters, expected at least 7"),
    (dict(most_caption=2), "caption has 3 characters, expected at most 2"),
    (dict(at_least={"s": 0.4}), "s is 0.3, expected at least 0.4"),
    (dict(at_most={"s": 0.2}), "s is 0.3, expected at most 0.2"),
    (dict(at_most={"t": 0.2}), "t has no number, expected at most 0.2"),
    (dict(at_most={"n": 0.2}), "n has no number, expected at most 0.2"),
    (dict(at_least={"h": 2}), "h has no number, expected at least 2"),
  ],
)
def test_filters(settings, reason):
  try:
    Filters(**settings).check(RECORD)
  except Dropped as error:
    assert str(error) == reason
  else:
    assert reason is None


def test_only_captions_of_a_good_length_stay():
  kept = Filters(least_caption=4).check(RECORD)
  assert kept.captions == ("abcdef",)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (dict(least_side=7), "least_side is 7, expected at least 8"),
    (dict(most_aspect=0.5), "most_aspect is 0.5, expected 1 or more"),
    (
      dict(most_caption=0),
      "most_caption is 0, expected at least ",
    ),
  ],
)
def test_bad_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    Filters(**settings)


@pytest.mark.parametrize(
  ("options", "same"),
  [
    (dict(), True),
    (dict(kind="jpeg"), True),
    (dict(kind="jpeg", mode="L"), False),
    (dict(kind="jpeg", mode="CMYK"), False),
    (dict(mode="P"), False),
    (dict(mode="RGBA"), False),
    (dict(kind="webp", lossless=True), False),
    (dict(kind="jpeg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3"
      b"\0\0\0\1\0\6\0\0\0\0\0\0"), False),
  ],
)  # fmt: skip
def test_what_other_decoders_read_otherwise_is_stored_as_png(options, same):
  data = encode(**options)
  kept = Filters().check(Record("a", data, ("a",)))
  assert (kept.image == data) == same
  assert kept.image.startswith(b"\x89PNG") or same
  np.testing.assert_array_equal(images.decode(kept.image), images.decode(data))
