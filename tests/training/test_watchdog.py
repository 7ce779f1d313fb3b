"""The watchdog: what it takes for a hang, and what it does then."""

import threading

import pytest

from imagen_jax.training import watchdog
from imagen_jax.training.watchdog import Watchdog

SOON = {"tick": 0.01}
LONG = 300  # seconds that no test waits


def test_a_hang_prints_every_stack_and_calls_on_hang(capsys):
  hung, waiting = threading.Event(), threading.Event()

  def wait_for_a_chip():
    waiting.wait(LONG)

  waiter = threading.Thread(target=wait_for_a_chip, name="waiter")
  waiter.start()
  with Watchdog(0.05, hung.set, **SOON):
    assert hung.wait(LONG)
  waiting.set()
  waiter.join()
  said = capsys.readouterr().err
  assert said.startswith("error: no step ended for 0 s: a device, a store or")
  assert "Thread waiter:" in said and "in wait_for_a_chip" in said
  assert "Thread MainThread:" in said


class Time:
  """A clock that only `pass_` moves, and a watch that looks at it."""

  def __init__(self, monkeypatch):
    self.now, self.hangs = 0.0, 0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now)

  def watch(self, dog, looks, tick=1.0):
    """Runs the thread's loop for so many looks; returns whether it ended."""
    left = iter(range(looks))

    def wait(seconds):
      self.now += tick
      return next(left, None) is None

    dog._ended.wait = wait
    before = self.hangs
    dog._watch()
    return self.hangs > before


@pytest.fixture
def clock(monkeypatch):
  return Time(monkeypatch)


def test_twenty_median_steps_are_no_hang_if_steps_are_long(clock, capsys):
  dog = Watchdog(60, lambda: setattr(clock, "hangs", clock.hangs + 1))
  assert dog.limit() == 60
  for lap in (400, 10, 10, 10, 900):
    clock.now += lap
    dog.beat()
  assert dog.limit() == watchdog.STEPS * 10
  assert not clock.watch(dog, looks=199)
  assert clock.watch(dog, looks=2)


def test_a_pause_and_a_stop_of_this_process_are_no_hang(clock, capsys):
  dog = Watchdog(60, lambda: setattr(clock, "hangs", clock.hangs + 1))
  with dog.paused():
    assert not clock.watch(dog, looks=1000)
  assert not clock.watch(dog, looks=20, tick=3600)  # SIGSTOP, or a laptop
  assert clock.watch(dog, looks=30)


def test_none_does_not_watch():
  with Watchdog(None, **SOON) as dog:
    assert not dog._thread.is_alive()
