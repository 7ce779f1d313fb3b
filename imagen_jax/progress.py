"""Progress of long work: a line redrawn on a terminal, else plain lines."""

import collections
import contextlib
import errno
import sys
import time
from collections.abc import Iterator
from typing import TextIO

import jax


def clock(seconds: float) -> str:
  """3723 -> "1:02:03"."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}"


class Progress:
  """Steps done, speed and time left of one piece of work.

  start() marks the end of whatever must not count as work, such as
  compilation, and pause()/resume() leave out checkpoints and sample grids. Of
  many processes all but one are to be quiet.
  """

  def __init__(
    self,
    name: str,
    total: int,
    *,
    unit: str = "step",
    out: TextIO | None = None,
    quiet: bool = False,
  ):
    self._name, self._total, self._unit = name, total, unit
    self._out = sys.stdout if out is None else out
    self._live, self._quiet = self._out.isatty(), quiet
    self.start(0)

  def start(self, step: int) -> None:
    """Counts time from now on, with `step` steps already done."""
    self._first, self._busy, self._since = step, 0.0, time.monotonic()

  def pause(self) -> None:
    """Stops the clock."""
    self._busy += time.monotonic() - self._since

  def resume(self) -> None:
    """Lets the clock run on."""
    self._since = time.monotonic()

  def seconds_per_step(self, step: int) -> float:
    """Mean working time of the steps since start()."""
    busy = self._busy + time.monotonic() - self._since
    return busy / max(step - self._first, 1)

  def show(self, step: int, note: str = "") -> None:
    """Says that `step` steps are done; note is, say, the loss."""
    pace = self.seconds_per_step(step)
    line = f"{self._name} {step}/{self._total}"
    if step > self._first:
      left = clock(pace * (self._total - step))
      line += f"  {pace:.3g} s/{self._unit}  ETA {left}"
    self.say(f"{line}  {note}".rstrip(), last=step >= self._total)

  def say(self, line: str, last: bool = True) -> None:
    """Writes a line; on a terminal, one that the next may redraw."""
    if self._quiet:
      return
    if self._live:
      line = f"\r\033[K{line}" + ("\n" if last else "")
    else:
      line += "\n"
    try:
      self._out.write(line)
      self._out.flush()
    except OSError as error:
      # Of a file on a full disk, it is kept for when there is room.
      if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise


class Clock:
  """Seconds spent in named parts of a loop."""

  def __init__(self):
    self._spent: dict[str, float] = collections.defaultdict(float)

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Counts the time of a with-block."""
    begun = time.monotonic()
    try:
      yield
    finally:
      self._spent[name] += time.monotonic() - begun

  def take(self) -> dict[str, float]:
    """The seconds of each part since the last time."""
    spent = dict(self._spent)
    self._spent.clear()
    return spent


class Stopwatch:
  """Laps of wall time, and the share of each that JAX spent compiling."""

  def __init__(self):
    self._compiling, self._since = 0.0, time.monotonic()
    jax.monitoring.register_event_duration_secs_listener(self._listen)

  def _listen(self, event: str, seconds: float, **_) -> None:
    if event.endswith("backend_compile_duration"):
      self._compiling += seconds

  def lap(self) -> str:
    """The time since the last lap: "9.1 s, 8.0 s of it compiling"."""
    now = time.monotonic()
    text = f"{now - self._since:.1f} s"
    if self._compiling > 0.05:
      text += f", {self._compiling:.1f} s of it compiling"
    self._compiling, self._since = 0.0, now
    return text
