"""Progress: its arithmetic, on a clock of the test's own, and its lines."""

import io
import os

import jax
import pytest

from imagen_jax import progress as progress_lib
from imagen_jax.progress import Clock, Progress, Stopwatch, clock


class Time:
  """time.monotonic, but it passes when told to."""

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
  progress.say("compiling")
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
    work.say("one")
    os.dup2(there, out.fileno())
    os.close(there)
    work.say("two")
  assert path.read_text() == "one\ntwo\n"


def test_a_terminal_gets_one_line_redrawn(time):
  out = Terminal()
  progress = Progress("train", 3, out=out)
  for step in (1, 2, 3):
    time.wait(1)
    progress.show(step)
  progress.say("done")
  clear = "\r\033[K"
  assert out.getvalue() == (
    f"{clear}train 1/3  1 s/step  ETA 0:00:02"
    f"{clear}train 2/3  1 s/step  ETA 0:00:01"
    f"{clear}train 3/3  1 s/step  ETA 0:00:00\n"
    f"{clear}done\n"
  )


def test_a_message_does_not_tear_the_line(time):
  out = Terminal()
  progress = Progress("train", 3, out=out)
  progress.show(1)
  progress.say("a note")
  progress.show(2)
  shown = out.getvalue().split("\r\033[K")[1:]
  assert [line.count("\n") for line in shown] == [0, 1, 0]


def test_a_stopwatch_tells_of_compilation(time):
  watch = Stopwatch()
  time.wait(2.5)
  assert watch.lap() == "2.5 s"
  jax.jit(lambda x: x + 1)(1.0)
  compiling = watch._compiling
  assert compiling > 0
  watch._listen("/a/backend_compile_duration", 3 - compiling)
  watch._listen("/another/duration", 10.0)
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
