"""Records that cannot be used: replaced, counted, and too many of them."""

import io
import itertools
import re
import threading

import numpy as np
import pytest
from array_record.python import array_record_data_source, array_record_module
from PIL import Image

from imagen_jax.data import pipeline
from imagen_jax.data.examples import (
  BadRecords,
  Examples,
  _stride,
  bad_sentence,
)
from imagen_jax.training.settings import Data


def tokenize(captions):
  """Writes the number in "number 7" into the only token."""
  ids = np.array([[int(c.split()[1])] for c in captions], np.int32)
  return ids, ids >= 0


def make_source(n, bad=()):
  """n records whose image is their number, with some captions lost."""
  return [
    {
      "image": np.full((8, 8, 3), i % 256, np.uint8),
      "caption": "" if i in bad else f"number {i}",
    }
    for i in range(n)
  ]


def batches(source, bad, **options):
  defaults = dict(size=8, tokenize=tokenize, global_batch=8, seed=3)
  return pipeline.make_batches(source, bad=bad, **(defaults | options))


def examples(source, bad=None):
  return Examples(source, 8, tokenize=tokenize, cache=False, bad=bad)


def numbers(n, source, bad, **options):
  """The records that n batches consist of, [n, b]."""
  taken = itertools.islice(batches(source, bad, **options), n)
  return np.stack([b["tokens"][:, 0] for b in taken])


def png(side=8):
  file = io.BytesIO()
  Image.new("RGB", (side, side)).save(file, "png")
  return file.getvalue()


BAD = [
  ({"image": b""}, "image bytes cannot be decoded (of no known format)"),
  ({"image": png()[:40]}, "image bytes cannot be decoded ("),
  ({"image": png(1)}, "image is 1 pixels narrow, expected at least 8"),
  ({"image": png(7)}, "image is 7 pixels narrow, expected at least 8"),
  ({"image": np.zeros((0, 0, 3), np.uint8)}, "image is 0 pixels narrow"),
  ({"image": np.zeros((0, 9), np.uint8)}, "image "),
  (
    {"image": np.zeros((9, 9), np.int64)},
    "image is int64 [9, 9], expected uint8 [H, W] or",
  ),
  ({"image": None}, "image is NoneType, expected bytes or an array"),
  ({"caption": ""}, "caption is empty"),
  ({"caption": b" \n\t"}, "caption is empty"),
  ({"caption": "\u3000"}, "caption is empty"),
  ({"caption": b"caf\xe9 0"}, "caption is not UTF-8"),
  ({"caption": None}, "caption is NoneType, expected text"),
  ({"caption": 7}, "caption is int, expected text"),
  ({"caption": [7]}, "caption is int, expected text"),
  ({"caption": []}, "caption is empty"),
  ({"caption": ["", b" "]}, "caption is empty"),
  ({"caption": ["number 7", b"caf\xe9"]}, "caption is not UTF-8"),
  ({"caption": [["number 7"]]}, "caption is list, expected text"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_record_is_replaced_and_named(change, reason):
  source = make_source(4)
  source[2] |= change
  bad = BadRecords(max_share=1)
  assert examples(source, bad)[2]["tokens"] in (0, 1, 3)
  assert (bad.read, bad.count) == (2, 1)
  assert bad.reasons[0].startswith(f"record 2: {reason}")
  with pytest.raises(ValueError) as caught:  # with nobody to count
    examples(source)[2]
  assert str(caught.value) == bad.reasons[0]
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["image", "caption"])
def test_what_lacks_is_named(key):
  source = make_source(4)
  del source[2][key]
  with pytest.raises(ValueError, match=f"record 2: it has no {key}"):
    examples(source)[2]


class Damaged:
  """Records of an array_record file, which is damaged in the middle."""

  def __init__(self, path):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(64):
      writer.write(np.random.default_rng(0).bytes(5000))
    writer.close()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = bytes(20_000)
    path.write_bytes(data)
    self._bytes = array_record_data_source.ArrayRecordDataSource([str(path)])

  def __len__(self):
    return len(self._bytes)

  def __getitem__(self, index):
    assert len(self._bytes[index]) == 5000
    return make_source(index + 1)[index]


def test_records_of_a_damaged_file_are_bad(tmp_path):
  bad = BadRecords(max_share=1)
  damaged = examples(Damaged(tmp_path / "a"), bad)
  used = [int(damaged[i]["tokens"][0, 0]) for i in range(64)]
  lost = set(range(64)) - set(used)
  assert 3 <= len(lost) <= bad.count < 16
  assert "Corrupted" in bad.reasons[0]
  # Other records stand for those in a row, and each of them for one.
  assert all(used.count(i) <= 2 for i in used)


@pytest.mark.parametrize("kind", [OSError, RuntimeError, ValueError])
def test_a_record_that_cannot_be_read_is_named_in_one_line(kind):
  class Source(list):
    def __getitem__(self, index):
      raise kind("no such\n  chunk")

  with pytest.raises(ValueError, match="^record 0: no such chunk$"):
    examples(Source([0]))[0]


def test_a_reason_is_printable_and_short():
  """It may quote a dataset's text: escape sequences, or megabytes of it."""

  class Source(list):
    def __getitem__(self, index):
      raise ValueError("\x1b[31m\u202e" + "x" * 10**6)

  bad = BadRecords(max_share=1)
  with pytest.raises(ValueError, match="on are bad") as caught:
    examples(Source([0]), bad)[0]
  for said in (str(caught.value), *bad.reasons):
    assert said.isprintable() and len(said) < 400
  assert bad.reasons[0].startswith(r"record 0: '\x1b[31m\u202exxx")


def test_what_the_source_does_wrong_is_raised():
  class Source(list):
    def __getitem__(self, index):
      raise TypeError("a mistake in a program")

  with pytest.raises(TypeError, match="a mistake in a program"):
    examples(Source([0]), BadRecords(1))[0]


LOST = {3, 4, 5, 17, 39}


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("cache", [False, True])
def test_batches_do_not_depend_on_the_hosts(hosts, cache):
  source = make_source(40, LOST)
  whole = numbers(12, source, BadRecords(1))
  shards = [
    numbers(12, source, BadRecords(1), rows=rows, cache=cache)
    for rows in np.split(np.arange(8), hosts)
  ]
  np.testing.assert_array_equal(np.concatenate(shards, 1), whole)


def test_resuming_gives_the_same_batches():
  source = make_source(40, LOST)
  late = numbers(5, source, BadRecords(1), start_step=7)
  whole = numbers(12, source, BadRecords(1))
  np.testing.assert_array_equal(late, whole[7:])


def test_good_records_stay_in_their_places():
  whole = numbers(10, make_source(40), BadRecords(1))
  mended = numbers(10, make_source(40, LOST), BadRecords(1))
  lost = np.isin(whole, list(LOST))
  np.testing.assert_array_equal(mended[~lost], whole[~lost])
  assert not np.isin(mended, list(LOST)).any()
  # The same one always stands for a lost one, with its own image.
  pairs = set(zip(whole[lost], mended[lost], strict=True))
  assert len(pairs) == len(LOST)
  for batch in itertools.islice(
    batches(make_source(40, LOST), BadRecords(1)), 5
  ):
    shown = np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5)
    np.testing.assert_array_equal(shown, batch["tokens"][:, 0])


@pytest.mark.parametrize("total", [*range(1, 40), 1000, 1001])
def test_the_stride_visits_all(total):
  step = _stride(total)
  assert len({i * step % total for i in range(total)}) == total


def test_the_count_is_right():
  bad = BadRecords(max_share=1)
  some = examples(make_source(2000, {5, 6, 7, 900}), bad)
  for i in range(2000):
    some[i]
  assert (bad.read, bad.count) == (2004, 4)
  assert bad.reasons == [f"record {i}: caption is empty" for i in (5, 6, 7)]


def test_the_sentence():
  assert bad_sentence(0, 0, []) == "0 of 0 records read are bad, a share of 0"
  assert bad_sentence(4, 2004, ["", "1: a; 2: b", "", "8: c", "9: d", "3"]) == (
    "4 of 2,004 records read are bad, a share of 0.002, such as 1: a; 2: b; 8:"
    " c; 9: d"
  )


def test_with_a_cache_every_record_is_read_once():
  bad = BadRecords(max_share=1)
  some = Examples(
    make_source(4, {2}), 8, tokenize=tokenize, cache=True, bad=bad
  )
  for i in (0, 1, 2, 3) * 3:
    some[i]
  assert (bad.read, bad.count) == (5, 1)


def test_threads_lose_no_count():
  bad = BadRecords(max_share=1)

  def add():
    for i in range(5000):
      bad.add("no" if i % 5 == 0 else None, 10**6)

  threads = [threading.Thread(target=add) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (bad.read, bad.count) == (40_000, 8000)


def test_too_many_end_the_run_in_one_sentence():
  bad = BadRecords(max_share=0.01)
  lost = set(range(0, 4000, 50))  # 2 %
  taken = batches(make_source(4000, lost), bad, global_batch=100)
  with pytest.raises(ValueError) as caught:
    for _ in range(40):
      next(taken)
  sentence = (
    r"\d\d of 1,\d{3} records read are bad, a share of 0\.0\d+, more than the"
    r" 0\.01 that max_bad_share allows; the first is record \d+: caption is"
    r" empty"
  )
  assert re.fullmatch(sentence, str(caught.value))
  assert bad.reasons[0] in str(caught.value)


def test_fewer_do_not():
  bad = BadRecords(max_share=0.03)
  lost = set(range(0, 4000, 50))
  assert numbers(45, make_source(4000, lost), bad, global_batch=100).size
  assert bad.count >= 80


def test_a_bad_beginning_is_not_enough_to_tell():
  bad = BadRecords(max_share=0.5)
  for _ in range(400):
    bad.add("record 1: lost", 5000)
  for _ in range(600):
    bad.add(None, 5000)
  assert (bad.read, bad.count) == (1000, 400)


def test_all_of_a_small_source_are_enough_to_tell():
  bad = BadRecords(max_share=0.01)
  some = examples(make_source(10, {2}), bad)
  for i in range(8):
    some[i]  # nine were read: 2 and another one for it
  with pytest.raises(ValueError, match="1 of 10 records read are bad"):
    some[8]


@pytest.mark.parametrize("max_share", [0, 0.5, 1])
def test_nothing_but_bad_records_is_no_endless_search(max_share):
  for total in (1, 10, 3000):
    bad = BadRecords(max_share)
    taken = batches(make_source(total, set(range(total))), bad)
    expected = "records read are bad" if max_share < 1 else "on are bad"
    with pytest.raises(ValueError, match=f"{expected}.* the first is record"):
      next(taken)


def test_settings():
  assert Data().max_bad_share == 0.01 and Data().patience == 600
  Data(max_bad_share=0), Data(max_bad_share=1), Data(patience=0.5)
  for share in (-0.01, 1.01, float("nan")):
    message = f"max_bad_share is {share}, expected 0 to 1"
    with pytest.raises(ValueError, match=message):
      Data(max_bad_share=share)
  for most in (0, -1, 178_956_971):
    with pytest.raises(
      ValueError, match=f"max_pixels is {most}, expected 1 to"
    ):
      Data(max_pixels=most)
  for patience in (0, -1.0, float("nan")):
    message = f"patience is {patience}, expected more than 0"
    with pytest.raises(ValueError, match=message):
      Data(patience=patience)
