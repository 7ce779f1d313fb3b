"""Progress of long work: a bar on terminals and in notebooks, else lines."""

import collections
import contextlib
import errno
import functools
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

import jax

# The bar, then the step, the speed, the time left and a note.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"

# Failures to print that may pass: no room on a disk, a reader that is slow.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)


def clock(seconds: float) -> str:
  """Formats seconds: 3723 -> "1:02:03"."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}"


def say(line: str, out: TextIO | None = None) -> bool:
  """Prints a line, by default on sys.stdout; work goes on if it cannot.

  Returns False if nobody will read lines any more: the stream is closed, its
  reader has ended, or its terminal is gone. On a full disk the line is kept for
  when there is room. Letters that the stream's encoding lacks are escaped.
  """
  out = sys.stdout if out is None else out
  if out is None:  # as Python has it where it was started with stdout closed
    return False
  try:
    out.write(_encodable(line, out) + "\n")
    out.flush()
  except OSError as error:
    return error.errno in _PASSING
  except ValueError:  # it is closed
    return False
  return True


def _encodable(text: str, out: TextIO) -> str:
  """Escapes the letters that a stream's encoding lacks."""
  encoding = getattr(out, "encoding", None) or "utf-8"
  return text.encode(encoding, "backslashreplace").decode(encoding)


class Progress:
  """Shows the step, the speed and the time left of one piece of work.

  A bar of tqdm's on a terminal and in a notebook, plain lines elsewhere. Speeds
  leave out what precedes start(), such as compilation, and what lies between
  pause() and resume(), such as checkpoints. Without start(), the first steps
  shown count as the compiler's. The bar ends with the last step, or with
  close() or the with-block of work that ends early. Work goes on where nobody
  reads what is shown.
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
    """Begins at step 0.

    Args:
      name: of the work, at the head of every line.
      total: steps in all.
      unit: what a step is, for the speed.
      out: where to show it, by default sys.stdout or the notebook.
      quiet: shows nothing; for all but one of many processes.
    """
    self._name, self._total, self._unit = name, total, unit
    self._out = sys.stdout if out is None else out
    # Without a stream, or one that was closed, nobody reads.
    self._quiet = (
      quiet or self._out is None or getattr(self._out, "closed", False)
    )
    self._in_notebook = out is None and _in_notebook()
    self.live = self._in_notebook or (not self._quiet and self._out.isatty())
    self._bar: Any = None  # tqdm's, from the first step shown to the last
    self.start(0)
    self._timed = False  # until somebody calls start(), or steps are shown

  def start(self, step: int) -> None:
    """Counts time from now on, with `step` steps already done."""
    self._first, self._busy, self._since = step, 0.0, time.monotonic()
    self._timed = True

  def pause(self) -> None:
    """Stops the clock."""
    self._busy += time.monotonic() - self._since

  def resume(self) -> None:
    """Lets the clock run on."""
    self._since = time.monotonic()

  def seconds_per_step(self, step: int) -> float:
    """Returns the mean working time of the steps since start(), in seconds."""
    busy = self._busy + time.monotonic() - self._since
    return busy / max(step - self._first, 1)

  def show(self, step: int, note: str = "") -> None:
    """Shows that `step` steps are done, and a note such as the loss."""
    parts = []
    if not self._timed and step > 0:
      self.start(step)
    if step > self._first:
      pace = self.seconds_per_step(step)
      left = clock(pace * (self._total - step))
      parts = [f"{pace:.3g} s/{self._unit}", f"ETA {left}"]
    if note:
      parts.append(note)
    if not self.live:
      self.say("  ".join([f"{self._name} {step}/{self._total}", *parts]))
    elif not self._quiet:
      self._draw(step, "  ".join(parts))

  def say(self, line: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._quiet:
      return
    if (bar := self._bar) is None:  # another thread may end it
      self._quiet = not say(line, self._out)
    else:
      with self._drawing():
        bar.write(_encodable(line, self._out), file=self._out)

  def close(self) -> None:
    """Leaves the bar as it is; what is shown later begins another."""
    bar, self._bar = self._bar, None
    if bar is not None:
      with self._drawing():
        bar.close()

  @contextlib.contextmanager
  def _drawing(self) -> Iterator[None]:
    """Ends the bar, and not the work, where the block cannot draw it."""
    try:
      yield
    except (OSError, ValueError) as error:  # its terminal is gone, or closed
      if getattr(error, "errno", None) not in _PASSING:
        self._quiet = True
        if self._bar is not None:
          self._bar.disable = True  # else it would draw when it is collected

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _draw(self, step: int, text: str) -> None:
    with self._drawing():
      if self._bar is None:
        self._bar = _bar_type(self._in_notebook)(
          desc=self._name,
          total=self._total,
          file=self._out,
          bar_format=_BAR,
          dynamic_ncols=True,
          delay=1e-9,  # does not draw before it is given the step
        )
      self._bar.n = step
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.refresh()
    if step >= self._total:
      self.close()


def _in_notebook() -> bool:
  """Returns whether this process runs the cells of a notebook."""
  ipython = sys.modules.get("IPython")  # not imported by us: a notebook has it
  shell = ipython and ipython.get_ipython()
  return shell is not None and "IPKernelApp" in shell.config


@functools.cache
def _bar_type(in_notebook: bool) -> Any:
  """Returns tqdm's class, without the thread and the process's locks of its."""
  # Without ipywidgets a notebook gets lines; tqdm.auto would also warn.
  if in_notebook and importlib.util.find_spec("ipywidgets"):
    from tqdm.auto import tqdm
  else:
    from tqdm import tqdm

  class Bar(tqdm):
    monitor_interval = 0

  Bar.set_lock(threading.RLock())
  return Bar


class Clock:
  """Counts the seconds spent in named parts of a loop."""

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
    """Returns the seconds of each part since the last time."""
    spent = dict(self._spent)
    self._spent.clear()
    return spent


class Compilations:
  """Counts programs that JAX compiled, or read from its cache on disk."""

  def __init__(self):
    self._seconds: list[float] = []  # of each; threads may append

  def __call__(self, event: str, seconds: float, **_: Any) -> None:
    """Listens to an event of jax.monitoring."""
    if event.endswith("backend_compile_duration"):
      self._seconds.append(seconds)

  @property
  def count(self) -> int:
    """How many programs there were."""
    return len(self._seconds)

  @property
  def seconds(self) -> float:
    """How long they took in all, without tracing and lowering."""
    return sum(self._seconds)


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
  """Counts what the process compiles in the block, in all of its threads."""
  found = Compilations()
  jax.monitoring.register_event_duration_secs_listener(found)
  try:
    yield found
  finally:
    _unregister(found)


def _unregister(listener: Compilations) -> None:
  # JAX 0.7 has it under another name, which is not public.
  unregister = (
    getattr(jax.monitoring, "unregister_event_duration_listener", None)
    or jax._src.monitoring._unregister_event_duration_listener_by_callback
  )
  with contextlib.suppress(AssertionError):  # somebody cleared all listeners
    unregister(listener)


class Stopwatch:
  """Laps of wall time, and the share of each that JAX spent compiling.

  Compilation is counted within its with-block.
  """

  def __enter__(self) -> "Stopwatch":
    self._listening = compilations()
    self._compiled = self._listening.__enter__()
    self._since, self._before = time.monotonic(), 0.0
    return self

  def __exit__(self, *error: Any) -> None:
    self._listening.__exit__(*error)

  def lap(self) -> str:
    """Returns the time since the last: "9.1 s, 8.0 s of it compiling"."""
    now, compiled = time.monotonic(), self._compiled.seconds
    text = f"{now - self._since:.1f} s"
    if (compiling := compiled - self._before) > 0.05:
      text += f", {compiling:.1f} s of it compiling"
    self._since, self._before = now, compiled
    return text
