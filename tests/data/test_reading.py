"""How many records are read and decoded at once, and how far ahead."""

import itertools
import os
import threading
import time

import numpy as np
import pytest

from imagen_jax.data import feed as feeds
from imagen_jax.data import images, pipeline
from imagen_jax.data.feed import Feed
from imagen_jax.training.settings import Data


class Watched:
  """Records that are slow to read, and what is seen while they are read.

  Attributes:
    read: the indices in the order of their reads.
    most: the most reads at once.
  """

  def __init__(self, count, seconds=0.0, release=None):
    self.read, self.most = [], 0
    self._count, self._seconds, self._release = count, seconds, release
    self._now, self._lock = 0, threading.Lock()

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    with self._lock:
      self.read.append(index)
      self._now += 1
      self.most = max(self.most, self._now)
    time.sleep(self._seconds)
    if self._release is not None:
      self._release.wait()
    with self._lock:
      self._now -= 1
    return {"image": np.full((8, 8, 3), index % 256, np.uint8)}


def batches(source, **options):
  defaults = dict(size=8, tokenize=None, global_batch=4, seed=3)
  return pipeline.make_batches(source, **(defaults | options))


def shown(taken):
  return [batch["image"].tobytes() for batch in taken]


def until(found):
  """Waits for other threads; if that never comes, the test does not end."""
  while not found():
    time.sleep(0.001)


def pool():
  """The threads that read and decode."""
  return {t for t in threading.enumerate() if "grain" in t.name}


def test_many_reads_of_a_slow_source_are_in_flight():
  """Each takes 20 ms, as one of a bucket; one by one they came."""
  source = Watched(1000, seconds=0.02)
  taken = batches(source, reads=16, threads=1, steps=32)
  assert len(list(taken)) == 32
  assert 8 <= source.most <= 16  # all 16 but on a machine that is very busy


@pytest.mark.parametrize(("reads", "threads"), [(1, 1), (3, 1), (1, 3), (9, 4)])
def test_batches_do_not_depend_on_threads(reads, threads):
  expected = shown(batches(Watched(40), steps=12))
  source = Watched(40)
  options = dict(reads=reads, threads=threads, buffer=1)
  assert shown(batches(source, steps=12, **options)) == expected
  assert source.most <= reads
  late = shown(batches(Watched(40), start_step=7, steps=5, **options))
  assert late == expected[7:]


def test_one_small_batch_is_decoded_by_many_threads(monkeypatch):
  """Each thread made a batch of its own, so that one used one core."""
  here = threading.Barrier(4, timeout=60)  # four at once, or an error

  def decode(image, *args, **options):
    here.wait()
    return image

  monkeypatch.setattr(images, "decode", decode)
  (batch,) = batches(Watched(4), reads=1, threads=4, steps=1)
  assert len(batch["image"]) == 4


def test_no_more_are_decoded_than_there_are_threads(monkeypatch):
  lock, now, most = threading.Lock(), [], []

  def decode(image, *args, **options):
    with lock:
      now.append(1)
      most.append(len(now))
    time.sleep(0.001)
    with lock:
      now.pop()
    return image

  monkeypatch.setattr(images, "decode", decode)
  list(batches(Watched(40), reads=20, threads=2, steps=10))
  assert max(most) == 2


@pytest.mark.parametrize(
  ("options", "most"),
  [
    (dict(reads=2, threads=1, buffer=3), 12),
    (dict(reads=9, threads=3, buffer=1), 12),
  ],
)
def test_what_is_read_ahead_is_bounded(options, most):
  source = Watched(1000)
  taken = batches(source, **options)
  next(taken)
  until(lambda: len(source.read) == 4 + most)
  time.sleep(0.05)  # for more, if there were to be more
  assert len(source.read) == 4 + most
  taken.close()


def test_no_more_is_read_than_the_steps_need():
  source = Watched(1000)
  assert len(list(batches(source, steps=2))) == 2
  assert len(source.read) == 8


def test_closing_ends_all_threads(monkeypatch):
  monkeypatch.setattr(feeds, "_ENDING", 0.01)
  release, before = threading.Event(), pool()
  source = Watched(1000, release=release)
  feed = Feed(
    (batch for batch in batches(source, reads=4, threads=2)),
    patience=60, log=pytest.fail,
  )  # fmt: skip
  until(lambda: len(source.read) == 4)
  assert pool() - before
  feed.close()  # gives up a thread that hangs
  release.set()
  until(lambda: pool() <= before and not feed._thread.is_alive())
  assert len(source.read) <= 12  # the first batch, and those ahead of it


def test_an_error_ends_all_threads():
  before = pool()
  with pytest.raises(ValueError, match="record 0: it has no image"):
    next(batches([{}]))
  until(lambda: pool() <= before)


def test_all_cores_that_the_process_may_use(monkeypatch):
  monkeypatch.delattr(os, "process_cpu_count", raising=False)
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 6})
  assert pipeline.usable_cores() == 3
  monkeypatch.delattr(os, "sched_getaffinity")
  monkeypatch.setattr(os, "cpu_count", lambda: None)
  assert pipeline.usable_cores() == 1
  monkeypatch.setattr(os, "process_cpu_count", lambda: 7, raising=False)
  assert pipeline.usable_cores() == 7


@pytest.mark.parametrize(
  ("setting", "message"),
  [
    (dict(threads=0), "threads is 0, expected at least 1, or None for all"),
    (dict(reads=0), "reads is 0, expected at least 1"),
    (dict(buffer=0), "buffer is 0, expected at least 1"),
    (dict(least_side=-1), "least_side is -1, expected at least 0"),
    (dict(max_small_share=1.5), "max_small_share is 1.5, expected 0 to 1"),
  ],
)
def test_settings_that_cannot_be(setting, message):
  with pytest.raises(ValueError, match=message):
    Data(**setting)


def test_the_order_is_that_of_earlier_versions():
  """Else a run that resumes after an update sees other examples."""
  taken = batches(
    [{"image": np.full((8, 8, 3), i, np.uint8)} for i in range(9)]
  )
  order = [
    np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()
    for batch in itertools.islice(taken, 3)
  ]
  assert order == [[4, 6, 0, 7], [5, 3, 1, 8], [2, 8, 1, 3]]
