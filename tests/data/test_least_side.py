"""Images that are too small for a stage: found by the header, and replaced."""

import collections
import itertools
import pathlib
import runpy

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import images, pipeline
from imagen_jax.data.examples import BadRecords, Examples

formats = runpy.run_path(str(pathlib.Path(__file__).with_name("formats.py")))


def tokenize(captions):
  """Writes the number in "number 7" into the only token."""
  ids = np.array([[int(c.split()[1])] for c in captions], np.int32)
  return ids, ids >= 0


def make_source(n, small=(), bad=()):
  """n records whose image is their number, some of 8 pixels beside 16."""
  return [
    {
      "image": np.full((16, 8 if i in small else 16, 3), i % 256, np.uint8),
      "caption": "" if i in bad else f"number {i}",
    }
    for i in range(n)
  ]


def numbers(n, source, bad=None, **options):
  """The records that n batches consist of, [n, b]."""
  defaults = dict(
    size=8, tokenize=tokenize, global_batch=8, seed=3, least_side=16
  )
  taken = pipeline.make_batches(source, bad=bad, **(defaults | options))
  return np.stack([b["tokens"][:, 0] for b in itertools.islice(taken, n)])


SMALL = {3, 4, 5, 17, 39}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_the_header_decides(kind, monkeypatch):
  """Of a JPEG, before its decoder shrinks it towards the resolution."""
  data = formats["encode"](kind, Image.new("RGB", (90, 60), (200, 100, 0)))
  assert images.decode(data, 8, least_side=60).shape[2] == 3
  monkeypatch.setattr(images, "_load", pytest.fail)  # which decodes pixels
  with pytest.raises(images.TooSmall) as caught:
    images.decode(data, 8, least_side=61)
  assert str(caught.value) == (
    "image has 90 x 60 pixels, expected at least 61 on each side"
  )


def test_of_an_animation_the_canvas_counts():
  frames = [Image.new("RGB", (90, 60), value) for value in ("red", "blue")]
  data = formats["encode"](
    "WEBP", frames[0], save_all=True, append_images=frames[1:]
  )
  assert images.decode(data, 8, least_side=60).shape == (60, 90, 3)


def test_bytes_that_are_no_image_are_bad_and_not_small():
  with pytest.raises(ValueError, match="of no known format") as caught:
    images.decode(b"garbage", 8, least_side=60)
  assert not isinstance(caught.value, images.TooSmall)


@pytest.mark.parametrize("options", [{}, {"cache": True}, {"crop": 4}])
@pytest.mark.parametrize("hosts", [1, 4])
def test_hosts_and_resumed_runs_agree(hosts, options):
  source = make_source(40, SMALL)
  whole = numbers(12, source)
  assert not np.isin(whole, list(SMALL)).any()
  shards = [
    numbers(12, source, rows=rows, **options)
    for rows in np.split(np.arange(8), hosts)
  ]
  np.testing.assert_array_equal(np.concatenate(shards, 1), whole)
  late = numbers(5, source, start_step=7, **options)
  np.testing.assert_array_equal(late, whole[7:])


def test_all_others_stay_in_their_places():
  whole = numbers(10, make_source(40))
  found = numbers(10, make_source(40, SMALL))
  small = np.isin(whole, list(SMALL))
  np.testing.assert_array_equal(found[~small], whole[~small])


def test_no_record_replaces_more_often_than_others():
  """By the rule for bad records, the same one always did."""
  half = set(range(20))
  found = numbers(100, make_source(40, half)).ravel()
  counts = collections.Counter(found.tolist())
  assert counts.keys() == set(range(40)) - half
  assert 25 <= min(counts.values()) <= max(counts.values()) <= 55  # mean 40


def test_they_are_counted_apart_from_bad_ones():
  bad = BadRecords(max_share=1)
  source = make_source(40, SMALL, bad={7, 8})
  examples = Examples(
    source, 8, tokenize=tokenize, cache=False, bad=bad, least_side=16
  )
  found = [examples[i] for i in range(40)]
  assert {i for i, each in enumerate(found) if each is None} == SMALL
  assert (bad.read, bad.count, bad.small) == (42, 2, 5)
  assert bad.reasons == [f"record {i}: caption is empty" for i in (7, 8)]


def test_too_many_of_them_are_one_sentence():
  source = make_source(40, set(range(30)))
  numbers(5, source, BadRecords(0), max_small_share=0.9)
  with pytest.raises(ValueError) as caught:
    numbers(9, source, BadRecords(0), max_small_share=0.5)
  said = str(caught.value)
  assert "records read have images smaller than least_side, a share of" in said
  assert said.endswith(
    "more than the 0.5 that max_small_share allows: prepare a data set without"
    " them, or lower least_side; the last is " + said[said.rindex("record ") :]
  )
  assert "image has 8 x 16 pixels, expected at least 16 on each side" in said


@pytest.mark.parametrize("bad", [None, BadRecords(1)])
def test_nothing_but_small_images_is_no_endless_search(bad, monkeypatch):
  monkeypatch.setattr(pipeline, "ENOUGH", 20)
  source = make_source(40, set(range(40)))
  with pytest.raises(ValueError, match="are all smaller than least_side"):
    numbers(1, source, bad, max_small_share=1, reads=1, threads=1)


def test_by_default_all_are_used():
  source = make_source(40, SMALL)
  assert np.isin(numbers(5, source, least_side=0), list(SMALL)).any()
