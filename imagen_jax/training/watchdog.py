"""A watchdog for hangs, which no error reports."""

import collections
import contextlib
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from imagen_jax.progress import print_line

STEPS = 20  # median steps without an end that count as a hang
RECENT = 101  # steps of which the median is taken


class Watchdog:
  """Prints every thread's stack if no step ends for long.

  A chip, a link between chips or a store can hang without an error: the host
  then waits forever, and so do all others in their next collective. Time in
  which this process itself is stopped does not count.

  The with-block starts and ends the watch, in a thread of its own.

  Args:
    patience: the least seconds without a step that count as a hang; STEPS times
      the median step if that is more. None never does.
    on_hang: called once, in the watchdog's thread, after the stacks were
      printed on standard error.
    tick: seconds between two looks.
  """

  def __init__(
    self,
    patience: float | None,
    on_hang: Callable[[], None] = lambda: None,
    *,
    tick: float = 1.0,
  ):
    self._patience, self._on_hang, self._tick = patience, on_hang, tick
    self._laps: collections.deque[float] = collections.deque(maxlen=RECENT)
    self._idle, self._paused = 0.0, False
    self._since = time.monotonic()
    self._ended = threading.Event()
    self._thread = threading.Thread(
      target=self._watch, name="watchdog", daemon=True
    )

  def __enter__(self) -> "Watchdog":
    if self._patience is not None:
      self.beat()
      self._laps.clear()
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    if self._thread.is_alive():
      self._thread.join()

  def beat(self) -> None:
    """Notes the end of a step."""
    now = time.monotonic()
    self._laps.append(now - self._since)
    self._idle, self._since = 0.0, now

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Does not watch within the block, whose length is not known."""
    self._paused = True
    try:
      yield
    finally:
      self._idle, self._since = 0.0, time.monotonic()
      self._paused = False

  def limit(self) -> float:
    """Returns the seconds without a step that count as a hang."""
    laps = list(self._laps)
    return max(self._patience, STEPS * statistics.median(laps or [0.0]))

  def _watch(self) -> None:
    """Looks at the clock until a hang or the end, in the thread."""
    before = time.monotonic()
    while not self._ended.wait(self._tick):
      now = time.monotonic()
      # Of a longer gap, this process was stopped itself, as by Ctrl-Z.
      elapsed, before = min(now - before, 2 * self._tick), now
      if self._paused:
        continue
      self._idle += elapsed
      if self._idle > (limit := self.limit()):
        print_line(
          f"error: no step ended for {limit:.0f} s: a device, a store or"
          " another process hangs; the stacks of all threads follow\n"
          + stacks(),
          sys.stderr,
        )
        self._on_hang()
        return


def stacks() -> str:
  """Formats the stack of every thread of this process."""
  names = {thread.ident: thread.name for thread in threading.enumerate()}
  return "\n".join(
    f"Thread {names.get(ident, ident)}:\n"
    + "".join(traceback.format_stack(frame))
    for ident, frame in sys._current_frames().items()
  )
