"""Progress of long work: a line redrawn on a terminal, else plain lines."""

import sys
import time
from typing import TextIO


def clock(seconds: float) -> str:
  """3723 -> "1:02:03"."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}"


class Progress:
  """Steps done, speed and time left of one piece of work.

  start() marks the end of whatever must not count as work, such as
  compilation, and pause()/resume() leave out checkpoints and sample grids.
  """

  def __init__(
    self, name: str, total: int, first: int = 0, out: TextIO = sys.stdout
  ):
    self._name, self._total, self._out = name, total, out
    self._live = out.isatty()
    self.start(first)

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
      line += f"  {pace:.3g} s/step  ETA {left}"
    self.say(f"{line}  {note}".rstrip(), last=step >= self._total)

  def say(self, line: str, last: bool = True) -> None:
    """Writes a line; on a terminal, one that the next may redraw."""
    if self._live:
      self._out.write(f"\r\033[K{line}" + ("\n" if last else ""))
    else:
      self._out.write(line + "\n")
    self._out.flush()
