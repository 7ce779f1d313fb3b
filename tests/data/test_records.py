"""Records of anyone's dataset: damaged ones, and many files of them."""

import contextlib
import dataclasses
import os
import pathlib
import resource
import runpy
import threading
import time

import numpy as np
import pytest

from imagen_jax.data import pipeline, records, source
from imagen_jax.data.examples import BadRecords, Examples
from imagen_jax.data.records import OpenFiles

written = runpy.run_path(str(pathlib.Path(__file__).with_name("datasets.py")))
png, some_records = written["png"], written["some_records"]
TEXTS = written["TEXTS"]


def load(tmp_path, stored, features=(), **options):
  written["write_dataset"](tmp_path, stored, features, **options)
  return source.load_source("my_set", "train", tmp_path)


def tokenize(captions):
  ids = np.array([[int(c.split()[1])] for c in captions], np.int32)
  return ids, ids >= 0


GARBAGE = {
  "no proto": b"\xff\xff\xff\xff",
  "empty": b"",
  "cut": written["serialize"](some_records(1)[0])[:-9],
  "no image": {"caption": b"number 1"},
  "no caption": {"image": png()},
  "no value": {"image": png(), "caption": []},
  "two values": {"image": png(), "caption": [b"number 1", b"number 2"]},
  "a number": {"image": png(), "caption": 3},
  "numbers": {"image": [1, 2], "caption": b"number 1"},
  "not UTF-8": {"image": png(), "caption": b"caf\xe9"},
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_garbage_record_is_a_bad_one(tmp_path, kind):
  """Whatever max_bad_share is, one that is not a record ended training."""
  stored = some_records(4)
  stored[2] = GARBAGE[kind]
  opened, bad = load(tmp_path, stored), BadRecords(max_share=1)
  examples = Examples(opened, 8, tokenize=tokenize, cache=False, bad=bad)
  assert [int(examples[i]["tokens"][0, 0]) for i in (0, 1, 3)] == [0, 1, 3]
  assert examples[2]["tokens"] in (0, 1, 3)
  assert bad.count == 1 and bad.reasons[0].startswith("record 2: ")
  assert bad.reasons[0].isprintable() and len(bad.reasons[0]) < 300


def test_no_caption_of_a_list_is_a_bad_record(tmp_path):
  opened = load(tmp_path, [{"image": png(), "caption": []}], {"caption": TEXTS})
  with pytest.raises(ValueError, match="it cannot be parsed|caption is empty"):
    Examples(opened, 8, tokenize=tokenize, cache=False, bad=None)[0]


def test_a_record_that_is_too_large_is_not_parsed(tmp_path, monkeypatch):
  """As a few kilobytes that decompress to hundreds of megabytes."""
  stored = [*some_records(2), bytes(20_000)]
  opened = load(tmp_path, stored)
  monkeypatch.setattr(records, "MOST_BYTES", 10_000)
  assert opened[1]["caption"] == "number 1"
  with pytest.raises(
    ValueError, match="has 20,000 bytes, expected at most 10,"
  ):
    opened[2]


def test_records_that_are_not_in_their_file(tmp_path):
  opened = load(tmp_path, some_records(3), shardLengths=["5"])
  assert len(opened) == 5 and opened[2]["caption"] == "number 2"
  with pytest.raises((RuntimeError, ValueError, OSError)):
    opened[4]


def test_a_file_that_is_not_there(tmp_path):
  opened = load(tmp_path, some_records(4), shards=2)
  (path,) = (tmp_path / "my_set/1.0.0").glob("*00001-of-00002")
  path.unlink()
  assert opened[1]["caption"] == "number 1"
  with pytest.raises((RuntimeError, ValueError, OSError)):
    opened[2]


def open_shards(folder):
  count = 0
  for fd in os.listdir("/proc/self/fd"):
    with contextlib.suppress(OSError):  # another thread closed it
      count += str(folder) in os.readlink(f"/proc/self/fd/{fd}")
  return count


def test_many_files_need_few_descriptors(tmp_path, monkeypatch):
  """Each file stayed open: with `ulimit -n 100` most records were bad ones."""
  monkeypatch.setattr(records, "_most_open", lambda: 3)
  opened = load(tmp_path, some_records(200), shards=180)
  order = np.random.default_rng(0).permutation(200)
  found, most = {}, []

  def read(part):
    for i in part:
      found[i] = opened[i]["caption"]
      most.append(open_shards(tmp_path))

  threads = [
    threading.Thread(target=read, args=(part,))
    for part in np.array_split(order, 4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {i: f"number {i}" for i in range(200)}
  # Three are kept, and each thread may read one that no longer is.
  assert max(most) <= 3 + len(threads)


@pytest.mark.parametrize(
  ("soft", "most"),
  [(100, 25), (1024, 256), (2, 1), (10**6, 1024), (None, 1024)],
)
def test_the_limit_leaves_descriptors_for_others(monkeypatch, soft, most):
  limit = resource.RLIM_INFINITY if soft is None else soft
  monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
  assert records._most_open() == most


@pytest.fixture
def bucket(monkeypatch):
  """A stand-in for a bucket, of which each answer takes 20 ms.

  It also counts: `asked` is a list of requests, `most` how many came at once.
  """
  cloud = runpy.run_path(
    str(pathlib.Path(__file__).parents[1] / "cloud_storage.py")
  )
  handler, lock, now = cloud["Handler"], threading.Lock(), []

  def slowly(self):
    with lock:
      now.append(self)
      storage.asked.append(self.path)
      storage.most = max(storage.most, len(now))
    time.sleep(0.02)
    handler.answer(self)
    with lock:
      now.remove(self)

  monkeypatch.setattr(handler, "do_GET", slowly)
  storage = cloud["CloudStorage"]()
  storage.asked, storage.most, storage.buckets["bucket"] = [], 0, {}
  monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", storage.url)
  yield storage
  storage.close()


def test_many_small_reads_of_a_bucket_are_in_flight(tmp_path, bucket):
  """By array_record's own reader: one request for each record."""
  opened = load(tmp_path, some_records(64), shards=2)
  folder = tmp_path / "my_set/1.0.0"
  for shard in opened._shards:
    name = os.path.basename(shard.filename)
    bucket.put("bucket", name, (folder / name).read_bytes())
  opened._shards = [
    dataclasses.replace(
      s, filename=f"gs://bucket/{os.path.basename(s.filename)}"
    )
    for s in opened._shards
  ]
  opened._files = OpenFiles(opened._shards)
  opened[0], opened[63]  # which opens both files
  bucket.asked.clear()
  options = dict(size=8, tokenize=tokenize, global_batch=16, seed=0)
  taken = [*pipeline.make_batches(opened, **options, reads=16, steps=4)]
  assert len(bucket.asked) == 64 and 8 <= bucket.most <= 16
  local = load(tmp_path / "again", some_records(64), shards=2)
  for batch, expected in zip(
    taken, pipeline.make_batches(local, **options, steps=4), strict=True
  ):
    np.testing.assert_array_equal(batch["tokens"], expected["tokens"])


class Raw(records.Records):
  """Records of given bytes."""

  def __init__(self, *data: bytes):
    self._data, self._split_bytes = data, []

  def __len__(self) -> int:
    return len(self._data)

  def _bytes(self, index: int) -> bytes:
    return self._data[index]


def test_a_fingerprint_does_not_depend_on_the_order_of_features():
  """In which protobuf writes a map differs from process to process."""
  a, b = b"image: 123", b"caption: 45"
  first = Raw(a + b, b"c").fingerprint()
  assert Raw(b + a, b"c").fingerprint() == first
  assert Raw(a + b, b"d").fingerprint() != first
  assert Raw(b"c", a + b).fingerprint() != first
