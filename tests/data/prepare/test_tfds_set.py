"""Datasets of TFDS as sources: of both formats, damaged, and by paths."""

import pathlib
import runpy
import struct

import numpy as np
import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from imagen_jax import prepare
from imagen_jax.data.prepare import tfrecord
from imagen_jax.data.prepare.sources import open_source
from imagen_jax.data.source import load_source

FOLDER = pathlib.Path(__file__).parents[1]
written = runpy.run_path(str(FOLDER / "datasets.py"))
paths = runpy.run_path(str(FOLDER / "test_features.py"))
png, some_records = written["png"], written["some_records"]


def write_set(tmp_path, records, features=(), kind="tfrecord", **options):
  """Writes a set whose files are TFRecords, by TensorBoard's writer."""
  folder = written["write_dataset"](
    tmp_path, records, features, kind=kind, **options
  )
  if kind != "tfrecord":
    return folder
  files = sorted(folder.glob("*.tfrecord-*"))
  for path, part in zip(
    files, np.array_split(np.arange(len(records)), len(files))
  ):
    with path.open("wb") as file:
      writer = RecordWriter(file)
      for i in part:
        writer.write(written["serialize"](records[i]))
      writer.flush()
  return folder


def read(path, **options):
  source = open_source(path, per_part=1, **options)
  return [r for i in range(len(source.parts)) for r in source.read(i)]


def test_checksums_are_crc_32c():
  """As RFC 3720 states them; the last is longer than a block."""
  assert tfrecord.crc32c(b"123456789") == 0xE3069283
  assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA
  assert tfrecord.crc32c(bytes(range(32))) == 0x46DD794E
  assert tfrecord.crc32c(b"") == 0
  data, crc = bytes(i * i % 251 for i in range(10_001)), 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  assert tfrecord.crc32c(data) == crc ^ 0xFFFFFFFF


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_both_formats_are_read(tmp_path, kind):
  folder = write_set(tmp_path, some_records(7), kind=kind, shards=3)
  records = read(folder)
  assert [r.image for r in records] == [png(i) for i in range(7)]
  assert [r.captions for r in records] == [(f"number {i}",) for i in range(7)]
  assert len({r.key for r in records}) == 7
  records = read(folder, split="train[2:6]")
  assert [r.captions[0][-1] for r in records] == ["2", "3", "4", "5"]


def test_it_is_converted_to_what_training_reads(tmp_path, capsys):
  records = [
    paths["COCO_RECORD"] | {"image": png(i), "captions/text": [b"a", b"%d" % i]}
    for i in range(9)
  ]
  # write_set adds a feature `caption`, which records lack.
  records = [r | {"caption": b"other"} for r in records]
  folder = write_set(tmp_path, records, paths["COCO"], shards=2)
  prepare.main(
    [f"--source={folder}", f"--output={tmp_path}/out", "--validation=0",
     "--caption=captions/text", "--template=food: {}"]
  )  # fmt: skip
  found = load_source(f"{tmp_path}/out", "train", "")
  captions = [record["caption"] for record in found]
  assert captions == [["food: a", f"food: {i}"] for i in range(9)]
  assert [record["image"] for record in found] == [png(i) for i in range(9)]
  assert "train  9\n" in capsys.readouterr().out


def test_numbers_are_columns_for_thresholds(tmp_path):
  folder = write_set(
    tmp_path,
    [paths["LAION_RECORD"] | {"nsfw": 1}],
    paths["LAION"],
  )
  assert read(folder)[0].columns == {"nsfw": 1}


def test_arrays_and_bad_records(tmp_path):
  tensor = {
    "pythonClassName": written["TFDS"] + "tensor_feature.Tensor",
    "tensor": {
      "dtype": "uint8", "encoding": "none",
      "shape": {"dimensions": ["8", "8", "3"]},
    },
  }  # fmt: skip
  records = [
    {"image": [7] * 192, "caption": b"a"},
    {"image": [7] * 192, "caption": b" "},
    {"image": [7] * 192, "caption": b"\xff"},
    b"\xff\xff",
  ]
  found = read(write_set(tmp_path, records, {"image": tensor}))
  assert found[0].image.startswith(b"\x89PNG") and not found[0].reason
  assert [r.reason.split("(")[0] for r in found[1:]] == [
    "image without a caption: no text in the record",
    "caption is not UTF-8",
    "it cannot be parsed ",
  ]


def damage(path, kind):
  data = bytearray(path.read_bytes())
  first = 16 + struct.unpack("<Q", data[:8])[0]
  if kind == "cut":
    data = data[: first + 40]
  elif kind == "head":
    data = data[: first + 5]
  elif kind == "gone":
    data = data[:first]
  else:
    data[first + {"length": 1, "data": 20}[kind]] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  ("kind", "said"),
  [
    ("cut", "the file ends within a record"),
    ("head", "the file ends within a record"),
    ("gone", "it has 1 records, expected 3"),
    ("length", "the checksum of a record's length is wrong"),
    ("data", "the checksum of a record is wrong"),
  ],
)
def test_the_records_before_the_damage_are_read(tmp_path, kind, said):
  folder = write_set(tmp_path, some_records(3))
  (path,) = folder.glob("*.tfrecord-*")
  damage(path, kind)
  records = read(folder)
  assert [r.reason for r in records] == [
    None, f"file cannot be read beyond 1 records ({said})",
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("options", "said"),
  [
    (dict(split="test"), "has no split 'test', only train: change --split"),
    (dict(caption="text"), "has no feature 'text', only caption, image"),
  ],
)
def test_what_cannot_be_read_is_named(tmp_path, options, said):
  folder = write_set(tmp_path, some_records(1))
  with pytest.raises(ValueError, match=said):
    open_source(folder, per_part=1, **options)


def test_a_file_that_is_missing_is_named(tmp_path):
  folder = write_set(tmp_path, some_records(2), shards=2)
  (gone, _) = sorted(folder.glob("*.tfrecord-*"))
  gone.unlink()
  with pytest.raises(ValueError, match=f"^source {gone} cannot be read: No su"):
    open_source(folder, per_part=1)
