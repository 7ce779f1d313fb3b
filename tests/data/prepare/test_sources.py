"""What each format's reader finds, and what it reports of the rest."""

import json
import pathlib
import sys

import pyarrow
import pytest
from pyarrow import parquet

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from sources import encode, write_folder, write_metadata, write_tar

from imagen_jax.data.prepare.sources import open_source


def read(path, per_part=100, **options):
  source = open_source(path, per_part=per_part, **options)
  return [r for i in range(len(source.parts)) for r in source.read(i)]


def reasons(records):
  return {r.key: r.reason for r in records if r.reason}


@pytest.mark.parametrize("metadata", [None, "jsonl", "csv", "parquet"])
def test_a_folder_gives_images_and_captions(tmp_path, metadata):
  records = read(write_folder(tmp_path / "in", 5, metadata), per_part=2)
  assert [r.key for r in records] == [f"{i:03}.png" for i in range(5)]
  assert [r.image for r in records] == [encode(i) for i in range(5)]
  texts = [[t for t in r.captions if t] for r in records]
  assert texts == [[f"number {i}"] for i in range(5)]


def test_every_line_of_a_text_is_an_alternative(tmp_path):
  folder = write_folder(tmp_path / "in", 1)
  (folder / "000.txt").write_bytes("\ufeffein Stern\r\n星 \n".encode())
  assert [t for t in read(folder)[0].captions if t] == ["ein Stern", "星"]


def test_both_orphans_are_reported_beside_texts(tmp_path):
  folder = write_folder(tmp_path / "in", 1)
  (folder / "b 'c.JPG").write_bytes(encode())
  (folder / "d.txt").write_text("lonely")
  (folder / "e.png").write_bytes(encode())
  (folder / "e.txt").write_bytes(b"\xff\xfe")
  (folder / "notes.md").write_text("not of the dataset")
  (folder / ".hidden.png").write_bytes(b"")
  assert reasons(read(folder)) == {
    "b 'c.JPG": "image without a caption: no file b 'c.txt",
    "d.txt": "caption without an image: no image of this name",
    "e.png": "e.txt is not UTF-8 text",
  }


def test_both_orphans_are_reported_beside_metadata(tmp_path):
  folder = write_folder(tmp_path / "in", 2)
  (folder / "sub").mkdir()
  (folder / "sub" / "x.png").write_bytes(encode())
  rows = [
    {"file_name": "../001.png", "captions": ["a", "b"], "score": 0.5},
    {"file_name": "x.png", "captions": "one"},
    {"file_name": "gone.png", "captions": "one"},
    {"file_name": "../../../etc/passwd", "captions": "one"},
    {"file_name": None, "captions": "one"},
    {"file_name": "../001.png", "captions": [3]},
  ]
  write_metadata(folder / "sub", rows, "jsonl")
  records = read(folder)
  assert reasons(records) == {
    "000.png": "image without a caption: no row of metadata names it",
    "001.png": "caption is int, expected text",
    "sub/gone.png": "caption without an image: no such file",
    "sub/metadata.jsonl:4 '../../../etc/passwd'": (
      "file_name is outside of the folder"
    ),
    "sub/metadata.jsonl:5": "caption without an image: no file_name",
  }
  good = {r.key: (r.captions, r.columns) for r in records if not r.reason}
  assert good["001.png"] == (("a", "b"), {"score": 0.5})
  assert good["sub/x.png"][0] == ("one",)


def test_nested_folders_are_read_and_links_in_circles_are_not(tmp_path):
  write_folder(tmp_path / "in" / "b" / "c", 1)
  write_folder(tmp_path / "in" / ".hidden", 1)
  write_folder(tmp_path / "in" / "a", 1)
  (tmp_path / "in" / "a" / "again").symlink_to(tmp_path / "in")
  (tmp_path / "link").symlink_to(tmp_path / "in")
  for folder in (tmp_path / "in", tmp_path / "link"):
    assert [r.key for r in read(folder)] == ["a/000.png", "b/c/000.png"]


def test_image_file_name_names_images_too(tmp_path):
  folder = write_folder(tmp_path / "in", 1)
  write_metadata(folder, [{"image_file_name": "000.png", "text": "a"}], "csv")
  assert read(folder)[0].captions == ("a",)


def test_tars_of_img2dataset(tmp_path):
  """With a gap, without _stats.json, with failures, and cut."""
  sample = lambda i: [
    (f"{i:09}.jpg", encode(i, kind="jpeg")), (f"{i:09}.txt", b" a caption\n"),
    (f"{i:09}.json", json.dumps({"similarity": i / 10}).encode()),
  ]  # fmt: skip
  orphans = [("8.txt", b"lonely"), ("9.png", encode()), ("a/b.c.png", encode())]
  write_tar(tmp_path / "00000.tar", sample(0) + sample(1) + orphans)
  write_tar(tmp_path / "00003.tar", sample(2) + sample(3))
  whole = (tmp_path / "00003.tar").read_bytes()
  (tmp_path / "00003.tar").write_bytes(whole[:4000])
  rows = [
    {"key": "000000000", "status": "success", "error_message": None},
    {"key": "7", "status": "failed_to_download", "error_message": "HTTP 404"},
  ]
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
  (tmp_path / "0.parquet").rename(tmp_path / "00000.parquet")
  records = read(tmp_path)
  good = [r for r in records if not r.reason]
  assert [r.key for r in good] == [
    "00000/000000000", "00000/000000001", "00003/000000002",
  ]  # fmt: skip
  assert good[1].captions == ("a caption",)
  assert good[1].columns == {"similarity": 0.1}
  found = reasons(records)
  cut = found.pop("00003.tar")
  assert cut.startswith("tar cannot be read beyond 1 samples (ReadError: ")
  assert found == {
    "00000/8": "caption without an image: no image in the sample",
    "00000/9": "image without a caption: no text in the sample",
    "00000/a/b": "image without a caption: no text in the sample",
    "00000/7": "failed to download (HTTP 404)",
  }


def test_parquet_with_bytes_of_images(tmp_path):
  rows = [
    {"image": {"bytes": encode(i), "path": None}, "text": f"n {i}", "s": i}
    for i in range(7)
  ]
  rows[3]["image"] = {"bytes": None, "path": "x.png"}
  rows[4]["text"] = None
  table = pyarrow.Table.from_pylist(rows)
  parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
  source = open_source(tmp_path / "a.parquet", per_part=3)
  parts = [[*source.read(i)] for i in range(len(source.parts))]
  assert [len(part) for part in parts] == [4, 3]
  records = parts[0] + parts[1]
  assert [r.key for r in records] == [f"a.parquet:{i}" for i in range(7)]
  assert (records[5].image, records[5].captions) == (encode(5), ("n 5",))
  assert records[5].columns == {"s": 5}
  assert reasons(records) == {
    "a.parquet:3": "caption without an image: no bytes in the row",
    "a.parquet:4": "image without a caption: no text in the row",
  }


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({}, "source .*/in has no images, .tar or .parquet files"),
    ({"a.txt": b"x"}, "source .*/in has no images, .tar or .parquet files"),
    ({"metadata.jsonl": b"{"}, "line 1 of metadata .*jsonl is not JSON: "),
    ({"metadata.jsonl": b"3"}, "line 1 of metadata .*jsonl holds no object"),
    ({"metadata.csv": b"\xff"}, "metadata .*csv is not UTF-8 text"),
    (
      {"metadata.csv": b"text,b\nx,y\n"},
      "metadata .*/metadata.csv has no column file_name, expected one",
    ),
    (
      {"metadata.csv": b"file_name,text,caption\na,b,c\n"},
      "has the columns 'file_name', 'text', 'caption', expected one of .*or"
      " --caption to name one",
    ),
    ({"metadata.parquet": b"PAR1"}, "metadata .* is not a parquet file: "),
    ({"a.parquet": b"PAR1"}, "parquet file .*/a.parquet cannot be read: "),
  ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path, files, message):
  (tmp_path / "in").mkdir()
  for name, data in files.items():
    (tmp_path / "in" / name).write_bytes(data)
  with pytest.raises(ValueError, match=message):
    open_source(tmp_path / "in", per_part=3)


def test_a_source_that_is_missing_or_of_another_format(tmp_path):
  with pytest.raises(ValueError, match="source .*/none does not exist"):
    open_source(tmp_path / "none", per_part=3)
  folder = write_folder(tmp_path / "in", 1)
  with pytest.raises(ValueError, match=r"has no \.tar files"):
    open_source(folder, "webdataset", per_part=3)
  write_metadata(folder, [{"file_name": "000.png", "text": "a"}], "jsonl")
  with pytest.raises(ValueError, match="no column 'prompt', only 'file_name'"):
    open_source(folder, per_part=3, caption="prompt")


@pytest.mark.oracles
@pytest.mark.parametrize("metadata", ["jsonl", "csv", "parquet"])
def test_hugging_face_reads_a_folder_alike(tmp_path, metadata):
  datasets = pytest.importorskip("datasets")
  folder = write_folder(tmp_path / "in", 5, metadata)
  theirs = datasets.load_dataset(
    "imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache")
  )["train"]
  ours = read(folder)
  assert [r.captions for r in ours] == [(row["text"],) for row in theirs]
