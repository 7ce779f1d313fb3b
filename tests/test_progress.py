"""Progress: its arithmetic, on a clock of the test's own, and its lines."""

import contextlib
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys
import termios
import types
import warnings

import jax
import numpy as np
import pytest

from imagen_jax import progress as progress_lib
from imagen_jax.progress import Clock, Progress, Stopwatch, clock, compilations

ROOT = pathlib.Path(__file__).parents[1]


class Time:
  """time.monotonic, but it passes on demand."""

  now = 1000.0

  def monotonic(self) -> float:
    return self.now

  def wait(self, seconds: float) -> None:
    self.now += seconds


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


@pytest.fixture
def time(monkeypatch):
  clock = Time()
  monkeypatch.setattr(progress_lib, "time", clock)
  return clock


@pytest.mark.parametrize(
  ("seconds", "shown"),
  [
    (0, "0:00:00"),
    (59.9, "0:00:59"),
    (60, "0:01:00"),
    (3723, "1:02:03"),
    (360000, "100:00:00"),
  ],
)
def test_clock(seconds, shown):
  assert clock(seconds) == shown


def test_speed_and_time_left(time):
  out = io.StringIO()
  progress = Progress("train", 100, out=out)
  time.wait(30)  # compilation
  progress.start(0)
  time.wait(5)
  progress.show(10, "loss 0.5")
  time.wait(15)
  progress.show(20, "loss 0.4")
  # 5 s for 10 steps, 90 are left; then 20 s for 20 steps, 80 are left.
  assert out.getvalue() == (
    "train 10/100  0.5 s/step  ETA 0:00:45  loss 0.5\n"
    "train 20/100  1 s/step  ETA 0:01:20  loss 0.4\n"
  )


def test_steps_of_an_earlier_run_do_not_count(time):
  out = io.StringIO()
  progress = Progress("draw", 1000, unit="picture", out=out)
  progress.start(900)
  time.wait(20)
  progress.show(910)
  assert out.getvalue() == "draw 910/1000  2 s/picture  ETA 0:03:00\n"


def test_pauses_do_not_count(time):
  progress = Progress("train", 10, out=io.StringIO())
  for step in (1, 2, 3):
    time.wait(2)
    assert progress.seconds_per_step(step) == pytest.approx(2)
    progress.pause()
    time.wait(100)  # a checkpoint
    progress.resume()
  assert progress.seconds_per_step(3) == pytest.approx(2)


def test_before_the_first_step_there_is_no_speed(time):
  out = io.StringIO()
  progress = Progress("train", 10, out=out)
  time.wait(1)
  progress.show(0)
  assert out.getvalue() == "train 0/10\n"


def test_a_file_gets_whole_lines(time):
  out = io.StringIO()
  progress = Progress("train", 2, out=out)
  progress.log("compiling")
  progress.start(0)
  for step in (1, 2):
    time.wait(1)
    progress.show(step)
  assert out.getvalue().splitlines() == [
    "compiling",
    "train 1/2  1 s/step  ETA 0:00:01",
    "train 2/2  1 s/step  ETA 0:00:00",
  ]
  assert "\r" not in out.getvalue() and "\033" not in out.getvalue()


def test_a_line_waits_until_a_full_disk_has_room(tmp_path):
  path = tmp_path / "log"
  with path.open("w") as out, open("/dev/full", "w") as full:
    work, there = Progress("work", 3, out=out), os.dup(out.fileno())
    os.dup2(full.fileno(), out.fileno())
    work.log("one")
    os.dup2(there, out.fileno())
    os.close(there)
    work.log("two")
  assert path.read_text() == "one\ntwo\n"


def test_the_first_steps_shown_are_the_compilers_without_a_start(time):
  """As of batches of images: the first compiles each stage."""
  out = io.StringIO()
  progress = Progress("sample", 12, out=out)
  time.wait(10)  # text
  progress.show(0)
  time.wait(600)
  progress.show(4)
  time.wait(8)
  progress.show(8)
  assert out.getvalue().splitlines() == [
    "sample 0/12",
    "sample 4/12",
    "sample 8/12  2 s/step  ETA 0:00:08",
  ]


def without_a_reader(kind: str):
  """A stream that was read, and is not any more."""
  if kind == "closed":
    out = io.StringIO()
    out.close()
    return out
  there, here = os.pipe() if kind == "pipe" else os.openpty()
  os.close(there)
  return os.fdopen(here, "w")


@pytest.mark.parametrize("kind", ["pipe", "terminal", "closed"])
def test_work_goes_on_where_nobody_reads(time, kind):
  out = without_a_reader(kind)
  with Progress("work", 3, out=out) as work:
    for step in (1, 2, 3):
      work.log("a line")
      work.show(step)
  assert not progress_lib.print_line("a line", out)
  with contextlib.suppress(OSError):  # what it still holds
    out.close()


def test_a_terminal_that_closes_ends_the_bar_alone(time):
  there, here = os.openpty()
  termios.tcsetwinsize(here, (24, 80))
  os.set_blocking(there, False)
  out = os.fdopen(here, "w")
  with Progress("work", 3, out=out) as work:
    work.start(0)
    work.show(1)
    assert b"work:  33%" in os.read(there, 9999)
    os.close(there)
    work.show(2)
    work.log("a line")
    work.show(3)
  with contextlib.suppress(OSError):
    out.close()


def test_without_any_stream(monkeypatch):
  """As Python has it that was started with its output closed."""
  monkeypatch.setattr(sys, "stdout", None)
  with Progress("work", 1) as work:
    work.log("a line")
    work.show(1)
  assert not progress_lib.print_line("a line")


@pytest.mark.parametrize("terminal", [False, True])
def test_letters_that_an_encoding_lacks_are_escaped(time, terminal):
  data = io.BytesIO()
  out = io.TextIOWrapper(data, "ascii", write_through=True)
  out.isatty = lambda: terminal
  with Progress("work", 2, out=out) as work:
    work.show(1)
    work.log("saved: /tmp/star-\u2605-\udcff")
  assert b"saved: /tmp/star-\\u2605-\\udcff\n" in data.getvalue()


def shown(out: io.StringIO) -> list[str]:
  """What a terminal shows at last, line by line."""
  lines = out.getvalue().split("\n")
  return [line.split("\r")[-1].rstrip() for line in lines]


def test_a_terminal_gets_a_bar(time):
  out = Terminal()
  progress = Progress("train", 3, out=out)
  progress.log("compiling")
  time.wait(30)
  progress.start(0)
  for step in (1, 2, 3):
    time.wait(1)
    progress.show(step, f"loss {step}")
  progress.log("done")
  first, bar, last, end = shown(out)
  assert (first, last, end) == ("compiling", "done", "")
  assert re.fullmatch(
    r"train: 100%\|.+\| 3/3, 1 s/step  ETA 0:00:00  loss 3", bar
  )
  # Each step once, in one line; the last one again as it ends.
  drawn = [x for x in out.getvalue().split("\n")[1].split("\r") if "loss" in x]
  assert [re.search(r" (\d)/3, 1 s", x)[1] for x in drawn] == list("1233")


def test_messages_are_above_the_bar(time):
  out = Terminal()
  with Progress("train", 3, out=out) as progress:
    progress.show(1)
    progress.log("a note")
    assert shown(out)[0] == "a note" and "| 1/3" in shown(out)[1]
    progress.show(2)
  progress.log("asked to end")  # by itself, when the bar is closed
  first, bar, last, end = shown(out)
  assert (first, last, end) == ("a note", "asked to end", "")
  assert "| 2/3" in bar


def test_the_quiet_show_nothing(time):
  for out in (io.StringIO(), Terminal()):
    with Progress("train", 3, out=out, quiet=True) as progress:
      progress.show(1)
      progress.log("a note")
    assert out.getvalue() == ""


@pytest.mark.parametrize("kernel", [True, False])
def test_a_notebook_is_known_by_its_shell(time, monkeypatch, capsys, kernel):
  """A kernel's shell, that is; this one has no ipywidgets, and no warnings."""
  shell = types.SimpleNamespace(config={"IPKernelApp": {}} if kernel else {})
  ipython = types.SimpleNamespace(get_ipython=lambda: shell)
  monkeypatch.setitem(sys.modules, "IPython", ipython)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  progress_lib._bar_type.cache_clear()
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with Progress("draw", 2) as progress:
      progress.start(0)
      progress.show(1)
  progress_lib._bar_type.cache_clear()
  out = capsys.readouterr().out
  assert not caught
  assert ("draw:  50%|" in out) == kernel
  assert (out == "draw 1/2  0 s/step  ETA 0:00:00\n") != kernel


def test_ipython_is_not_imported_to_ask():
  code = (
    "import sys, imagen_jax.progress as p; p.Progress('a', 1).show(1);"
    "sys.exit('IPython' in sys.modules or 'tqdm' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_compilations_are_counted_in_their_block():
  double = jax.jit(lambda x: 2 * x)
  with compilations() as found:
    double(np.float32(1))
    first = found.count
    double(np.float32(2))  # the same program
    assert found.count == first >= 1 and found.seconds > 0
    double(np.ones(3, np.float32))
    assert found.count > first
  before = found.count
  double(np.ones(4, np.float32))
  assert found.count == before


def test_listeners_leave_whatever_becomes_of_the_others():
  listeners = jax._src.monitoring.get_event_duration_listeners
  before = listeners()
  with pytest.raises(KeyError), compilations(), Stopwatch():
    assert len(listeners()) == len(before) + 2
    raise KeyError
  assert listeners() == before
  with compilations() as found:
    progress_lib._unregister(found)  # as clear_event_listeners does
  assert listeners() == before


def test_a_stopwatch_tells_of_compilation(time):
  with Stopwatch() as watch:
    time.wait(2.5)
    assert watch.lap() == "2.5 s"
    jax.monitoring.record_event_duration_secs("/a/backend_compile_duration", 3)
    jax.monitoring.record_event_duration_secs("/another/duration", 10)
    time.wait(4)
    assert watch.lap() == "4.0 s, 3.0 s of it compiling"
    assert watch.lap() == "0.0 s"


def test_a_clock_has_parts(time):
  clock = Clock()
  for seconds in (2, 3):
    with clock.part("data"):
      time.wait(seconds)
    time.wait(100)  # in no part
  with clock.part("host"):
    time.wait(1)
  assert clock.take() == {"data": 5, "host": 1}
  assert clock.take() == {}
