"""Who is asked to end, and what is left of that afterwards."""

import os
import signal
import threading

import pytest

from imagen_jax.training.preemption import Preemption

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def handlers():
  return [signal.getsignal(number) for number in NUMBERS]


@pytest.fixture
def ours():
  """Handlers that must come back."""
  kept = handlers()
  marks = [lambda *_: None for _ in NUMBERS]
  for number, mark in zip(NUMBERS, marks, strict=True):
    signal.signal(number, mark)
  yield marks
  for number, handler in zip(NUMBERS, kept, strict=True):
    signal.signal(number, handler)


@pytest.mark.parametrize("sent", NUMBERS)
def test_it_hears_a_signal_and_puts_the_handlers_back(ours, sent):
  with Preemption() as preemption:
    assert not preemption.asked() and not preemption.reached(1)
    os.kill(os.getpid(), sent)
    assert preemption.asked() and preemption.reached(2)
  assert handlers() == ours


def test_a_second_interruption_is_one(ours):
  with pytest.raises(KeyboardInterrupt), Preemption() as preemption:
    os.kill(os.getpid(), signal.SIGINT)
    assert preemption.asked()
    os.kill(os.getpid(), signal.SIGINT)
    assert preemption.asked()  # not reached
  assert handlers() == ours


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_so(ours, sent):
  """As by nohup."""
  signal.signal(sent, signal.SIG_IGN)
  with Preemption() as preemption:
    os.kill(os.getpid(), sent)
    assert not preemption.asked()
  assert signal.getsignal(sent) == signal.SIG_IGN


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_closes_may_say_so_again(ours, first):
  with Preemption() as preemption:
    for sent in (first, signal.SIGHUP, signal.SIGHUP):
      os.kill(os.getpid(), sent)
      assert preemption.asked()
  assert handlers() == ours


def test_in_a_thread_it_hears_nothing_and_changes_nothing(ours):
  seen = []

  def work():
    with Preemption() as preemption:
      seen.append((handlers(), preemption.asked()))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [(ours, False)]
