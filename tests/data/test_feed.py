import itertools
import signal
import threading
import time

import pytest

from imagen_jax.data.feed import Feed, Stopped


def say_nothing(sentence):
  raise AssertionError(sentence)


def feed(source, patience=60.0, say=say_nothing, **options):
  return Feed(iter(source), patience=patience, say=say, **options)


@pytest.fixture
def stalled():
  """An iterator of 0 and 1 that then hangs, until the test is over."""
  release = threading.Event()

  def source():
    yield 0
    yield 1
    release.wait()
    yield 2

  yield source()
  release.set()


def test_gives_what_the_source_gives_in_its_order():
  ahead = feed(range(100))
  assert list(ahead) == list(range(100))
  with pytest.raises(StopIteration):  # and goes on saying so
    next(ahead)
  with pytest.raises(StopIteration):
    next(ahead)
  assert list(feed([None, 1, None])) == [None, 1, None]


def test_reads_ahead_but_not_endlessly():
  read = []
  ahead = feed(map(read.append, itertools.count()), ahead=3)
  limit = time.monotonic() + 5
  while len(read) < 4 and time.monotonic() < limit:
    time.sleep(0.01)
  time.sleep(0.1)
  assert read == [0, 1, 2, 3]  # three are ready, one has no place yet
  next(ahead)
  ahead.close()


def test_errors_arrive_unchanged_after_what_came_before():
  error = ValueError("20 of 1,000 records are bad")

  def source():
    yield 0
    raise error

  ahead = feed(source())
  assert next(ahead) == 0
  for _ in range(2):
    with pytest.raises(ValueError) as caught:
      next(ahead)
    assert caught.value is error


def test_a_stall_is_told_of_and_ended(stalled):
  said = []
  ahead = feed(stalled, patience=0.9, say=said.append, warn_every=0.3)
  assert [next(ahead), next(ahead)] == [0, 1] and not said
  with pytest.raises(ValueError) as caught:
    next(ahead)
  assert str(caught.value) == (
    "no data came for 1 s, expected some within patience, 0.9 s"
  )
  assert len(said) == 2
  assert said[0] == (
    "waiting for data for 0 s: none was read, and after 0.9 s the run ends"
  )
  ahead.close()


def test_waiting_is_counted():
  def source():
    yield 0
    time.sleep(0.5)
    yield 1

  ahead = feed(source())
  next(ahead)
  assert ahead.waited < 0.4
  next(ahead)
  assert 0.3 < ahead.waited < 5
  before = ahead.waited
  with pytest.raises(StopIteration):
    next(ahead)
  assert before <= ahead.waited < before + 0.3


def test_time_between_calls_is_not_waiting():
  ahead = feed(range(3), patience=0.2)
  for i in range(3):
    time.sleep(0.3)  # longer than patience, but nobody waits
    assert next(ahead) == i
  assert ahead.waited < 0.2


def test_a_wait_that_is_told_to_stop_stops(stalled):
  stop = threading.Event()
  ahead = feed(stalled, stop=stop.is_set)
  assert [next(ahead), next(ahead)] == [0, 1]
  threading.Timer(0.2, stop.set).start()
  with pytest.raises(Stopped):
    next(ahead)
  assert 0.1 < ahead.waited < 5
  ahead.close()


def test_what_is_ready_comes_in_spite_of_stop():
  ahead = feed(range(2), stop=lambda: True)
  time.sleep(0.2)
  assert list(ahead) == [0, 1]


def test_a_signal_is_noticed_while_waiting(stalled):
  seen = []
  before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
  try:
    ahead = feed(stalled, stop=lambda: bool(seen))
    assert [next(ahead), next(ahead)] == [0, 1]
    main = threading.main_thread().ident
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    with pytest.raises(Stopped):
      next(ahead)
  finally:
    signal.signal(signal.SIGUSR1, before)
  ahead.close()


def test_close_ends_the_thread():
  for ahead in (feed(itertools.count()), feed([]), feed([1])):
    time.sleep(0.1)  # until its queue is full, or its source empty
    ahead.close()
    assert not ahead._thread.is_alive()
    with pytest.raises(Stopped):
      next(ahead)
    ahead.close()


def test_close_leaves_a_thread_that_hangs(stalled):
  ahead = feed(stalled)
  assert [next(ahead), next(ahead)] == [0, 1]
  begun = time.monotonic()
  ahead.close()
  assert time.monotonic() - begun < 5
  assert ahead._thread.is_alive() and ahead._thread.daemon
