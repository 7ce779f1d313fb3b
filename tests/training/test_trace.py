"""Which steps are traced, and what is logged where none are."""

import types

import jax
import pytest

from imagen_jax.training.outputs import Trace


class Profiler:
  """As JAX's: it stops only what was started, and notes in which step."""

  def __init__(self, fails: str = ""):
    self.step, self.traced, self._fails = 0, [], fails
    self._started = 0

  def start_trace(self, folder: str) -> None:
    if self._started or self._fails == "start":
      raise RuntimeError("Only one profile may be run at a time.")
    assert folder == "run/trace"
    self._started = self.step

  def stop_trace(self) -> None:
    if not self._started:
      raise RuntimeError("No profile started")
    self.traced.append((self._started, self.step))
    self._started = 0
    if self._fails == "stop":
      raise OSError(28, "No space left on device")


def run(monkeypatch, steps, window, *, fails=""):
  """Runs steps; returns the profiler and what was logged."""
  profiler, said = Profiler(fails), []
  monkeypatch.setattr(jax, "profiler", profiler)
  progress = types.SimpleNamespace(log=said.append)
  job = types.SimpleNamespace(workdir="run", progress=progress)
  with Trace(job, window) as trace:
    for profiler.step in steps:
      trace.begin(profiler.step)
      trace.end(profiler.step, {})
  return profiler, said


@pytest.mark.parametrize(
  ("steps", "window", "traced"),
  [
    (range(1, 11), (5, 7), (5, 7)),
    (range(6, 11), (5, 7), (6, 7)),  # resumed within them
    (range(7, 11), (5, 7), (7, 7)),  # resumed before the last of them
    (range(1, 7), (5, 7), (5, 6)),  # ends within them
    (range(6, 7), (5, 7), (6, 6)),  # both
    (range(1, 11), (10, 10), (10, 10)),
    (range(1, 3), (0, 99), (1, 2)),
  ],
)
def test_the_steps_that_run_are_traced(monkeypatch, steps, window, traced):
  profiler, said = run(monkeypatch, steps, window)
  assert profiler.traced == [traced]
  assert said == [f"steps {traced[0]}:{traced[1]} are traced: run/trace"]


@pytest.mark.parametrize(
  ("steps", "had"),
  [
    (range(8, 11), "steps 8 to 10"),  # resumed after them
    (range(1, 5), "steps 1 to 4"),  # they are not reached
    (range(4, 5), "steps 4 to 4"),
    (range(0), "no step"),  # trained to the end before
  ],
)
def test_it_is_logged_that_there_is_no_trace(monkeypatch, steps, had):
  profiler, said = run(monkeypatch, steps, (5, 7))
  assert profiler.traced == []
  assert said == [
    f"no trace is written: profile_steps is 5:7, but this run had {had}"
  ]


def test_an_error_ends_the_trace(monkeypatch):
  said = []
  profiler = Profiler()
  monkeypatch.setattr(jax, "profiler", profiler)
  progress = types.SimpleNamespace(log=said.append)
  job = types.SimpleNamespace(workdir="run", progress=progress)
  with pytest.raises(KeyError), Trace(job, (2, 9)) as trace:
    for profiler.step in (1, 2, 3):
      trace.begin(profiler.step)
      trace.end(profiler.step, {})
    raise KeyError
  assert profiler.traced == [(2, 3)]


def test_nothing_is_traced_or_said_unasked(monkeypatch):
  profiler, said = run(monkeypatch, range(1, 9), None)
  assert (profiler.traced, said) == ([], [])


@pytest.mark.parametrize(
  ("fails", "line"),
  [
    (
      "start",
      "no trace is written: RuntimeError: Only one profile may be run at a "
      "time.",
    ),
    ("stop", "steps 5:7 are not traced: run/trace: No space left on device"),
  ],
)
def test_a_trace_that_fails_ends_no_run(monkeypatch, fails, line):
  _, said = run(monkeypatch, range(1, 11), (5, 7), fails=fails)
  assert said == [line]
