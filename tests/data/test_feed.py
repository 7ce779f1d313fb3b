import itertools
import signal
import threading
import time
import types

import pytest

from imagen_jax.data import feed as feeds
from imagen_jax.data.feed import Feed, Stopped


def log_nothing(sentence):
  raise AssertionError(sentence)


def feed(source, patience=60.0, log=log_nothing, **options):
  return Feed(iter(source), patience=patience, log=log, **options)


@pytest.fixture
def stalled(monkeypatch):
  """An iterator of 0 and 1 that then hangs, until the test is over."""
  monkeypatch.setattr(feeds, "_ENDING", 0.01)
  monkeypatch.setattr(feeds, "_POLL", 0.01)
  release = threading.Event()

  def source():
    yield 0
    yield 1
    release.wait()
    yield 2

  yield source()
  release.set()


@pytest.fixture
def clock(monkeypatch):
  """A clock for feeds, which a wait sets forward by 0.1 s at every look."""
  now = itertools.count()
  clock = types.SimpleNamespace(monotonic=lambda: next(now) / 10)
  monkeypatch.setattr(feeds, "time", clock)
  monkeypatch.setattr(feeds, "_POLL", 0.001)
  return now


def until(found):
  """Waits for another thread; if that never comes, the test does not end."""
  while not found():
    time.sleep(0.001)


def test_gives_what_the_source_gives_in_its_order():
  ahead = feed(range(100))
  assert list(ahead) == list(range(100))
  with pytest.raises(StopIteration):  # and still does
    next(ahead)
  with pytest.raises(StopIteration):
    next(ahead)
  assert list(feed([None, 1, None])) == [None, 1, None]


def test_reads_ahead_but_not_endlessly():
  read = []
  ahead = feed(map(read.append, itertools.count()), ahead=3)
  until(lambda: len(read) == 4)
  time.sleep(0.1)  # for more, if there were to be more
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


def test_a_stall_is_told_of_and_ended(stalled, clock):
  said = []
  ahead = feed(stalled, patience=0.9, log=said.append, warn_every=0.3)
  until(ahead._ready.full)
  assert [next(ahead), next(ahead)] == [0, 1] and not said
  with pytest.raises(ValueError) as caught:
    next(ahead)
  assert str(caught.value) == (
    "no record was read for 1 s, expected one within patience, 0.9 s"
  )
  assert len(said) == 2
  assert said[0] == ("waiting for data for 0 s; the run ends after 0.9 s")
  ahead.close()


def test_waiting_is_counted(clock):
  go_on = threading.Event()

  def source():
    yield 0
    go_on.wait()
    yield 1

  # Its second look but one lets the source continue.
  looks = itertools.count()
  stop = lambda: next(looks) == 3 and go_on.set()
  ahead = feed(source(), stop=stop)
  until(lambda: ahead._ready.qsize() == 1)
  next(ahead)
  assert ahead.waited == pytest.approx(0.1)  # between two looks at the clock
  next(ahead)
  assert ahead.waited > 0.5  # five looks and more
  until(lambda: ahead._ready.qsize() == 1)
  before = ahead.waited
  with pytest.raises(StopIteration):
    next(ahead)
  assert ahead.waited == pytest.approx(before + 0.1)


def test_time_between_calls_is_not_waiting(clock):
  ahead = feed(range(3), patience=0.2)
  for i in range(3):
    for _ in range(50):  # five seconds, but nobody waits
      next(clock)
    until(lambda: not ahead._ready.empty())
    assert next(ahead) == i
  assert ahead.waited == pytest.approx(0.3)


def test_a_wait_that_is_told_to_stop_stops(stalled):
  looks = itertools.count()
  ahead = feed(stalled, stop=lambda: next(looks) > 3)
  until(ahead._ready.full)
  assert [next(ahead), next(ahead)] == [0, 1]
  with pytest.raises(Stopped):
    next(ahead)
  assert next(looks) == 5
  ahead.close()


def test_what_is_ready_comes_in_spite_of_stop():
  ahead = feed(range(1), stop=lambda: True)
  until(ahead._ready.full)  # the item, and the end
  assert list(ahead) == [0]


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
  for ahead, count in ((feed(itertools.count()), 2), (feed([]), 1)):
    until(lambda ahead=ahead, count=count: ahead._ready.qsize() == count)
    ahead.close()
    until(lambda ahead=ahead: not ahead._thread.is_alive())
    with pytest.raises(Stopped):
      next(ahead)
    ahead.close()


def test_close_leaves_a_thread_that_hangs(stalled):
  """Were it to wait for the thread, this would not end."""
  ahead = feed(stalled)
  assert [next(ahead), next(ahead)] == [0, 1]
  ahead.close()
  assert ahead._thread.is_alive() and ahead._thread.daemon
