"""Progress of long work: a bar in terminals and notebooks, else lines."""

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

# A bar, then the step, the speed, the time left and a note.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"

# Temporary failures to print: a full disk, or a slow reader.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)


def clock(seconds: float) -> str:
  """Formats seconds as h:mm:ss: 3723 gives "1:02:03"."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}"


def print_line(line: str, out: TextIO | None = None) -> bool:
  """Prints a line, by default on sys.stdout, and ignores failures.

  Characters outside the stream's encoding are escaped. On a full disk the line
  stays in the stream's buffer until there is room.

  Returns:
    False if no later line can be read: the stream is closed, its reader has
    ended, or its terminal is gone.
  """
  out = sys.stdout if out is None else out
  if out is None:  # Python was started with stdout closed
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
  """Escapes characters outside a stream's encoding."""
  encoding = getattr(out, "encoding", None) or "utf-8"
  return text.encode(encoding, "backslashreplace").decode(encoding)


class Progress:
  """Shows the step, the speed and the time left of one task.

  A terminal or a notebook shows a tqdm bar; other streams get plain lines.
  Speeds exclude the time before start(), such as compilation, and the time
  between pause() and resume(), such as checkpoints. Without start(), the speed
  is measured from the first steps shown. The bar ends with the last step, with
  close() or with the with-block. The task continues if its output cannot be
  written.

  Attributes:
    live: whether a bar is shown rather than lines.
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
      name: the task's name, at the head of every line.
      total: the number of steps.
      unit: the name of a step in speeds.
      out: the stream to print on; None means sys.stdout or the notebook.
      quiet: prints nothing, for all but one of many processes.
    """
    self._name, self._total, self._unit = name, total, unit
    self._out = sys.stdout if out is None else out
    # A missing or closed stream has no reader.
    self._quiet = (
      quiet or self._out is None or getattr(self._out, "closed", False)
    )
    self._in_notebook = out is None and _in_notebook()
    self.live = self._in_notebook or (not self._quiet and self._out.isatty())
    self._bar: Any = None  # a tqdm bar from the first step shown to the last
    self.start(0)
    self._timed = False  # until start() is called, or steps are shown

  def start(self, step: int) -> None:
    """Starts the clock, with `step` steps already done."""
    self._first, self._busy, self._since = step, 0.0, time.monotonic()
    self._timed = True

  def pause(self) -> None:
    """Stops the clock."""
    self._busy += time.monotonic() - self._since

  def resume(self) -> None:
    """Restarts the clock after pause()."""
    self._since = time.monotonic()

  def seconds_per_step(self, step: int) -> float:
    """Returns the mean seconds of a step since start(), without pauses."""
    busy = self._busy + time.monotonic() - self._since
    return busy / max(step - self._first, 1)

  def show(self, step: int, note: str = "") -> None:
    """Shows the number of steps done, and a note such as the loss."""
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
      self.log("  ".join([f"{self._name} {step}/{self._total}", *parts]))
    elif not self._quiet:
      self._draw(step, "  ".join(parts))

  def log(self, line: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._quiet:
      return
    if (bar := self._bar) is None:  # read once: another thread may end the bar
      self._quiet = not print_line(line, self._out)
    else:
      with self._drawing():
        bar.write(_encodable(line, self._out), file=self._out)

  def close(self) -> None:
    """Ends the bar as it is; a later step begins a new one."""
    bar, self._bar = self._bar, None
    if bar is not None:
      with self._drawing():
        bar.close()

  @contextlib.contextmanager
  def _drawing(self) -> Iterator[None]:
    """Ends the bar, but not the task, if the block cannot draw it."""
    try:
      yield
    except (OSError, ValueError) as error:  # the terminal is gone or closed
      if getattr(error, "errno", None) not in _PASSING:
        self._quiet = True
        if self._bar is not None:
          self._bar.disable = True  # else tqdm draws it when it is collected

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def _draw(self, step: int, text: str) -> None:
    """Draws the bar at a step, and closes it after the last step."""
    with self._drawing():
      if self._bar is None:
        self._bar = _bar_type(self._in_notebook)(
          desc=self._name,
          total=self._total,
          file=self._out,
          bar_format=_BAR,
          dynamic_ncols=True,
          delay=1e-9,  # delays drawing until the step is set
        )
      self._bar.n = step
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.refresh()
    if step >= self._total:
      self.close()


def _in_notebook() -> bool:
  """Tests whether this process runs the cells of a notebook."""
  ipython = sys.modules.get("IPython")  # a notebook has imported it already
  shell = ipython and ipython.get_ipython()
  return shell is not None and "IPKernelApp" in shell.config


@functools.cache
def _bar_type(in_notebook: bool) -> Any:
  """Returns a tqdm class without a monitor thread or process-wide locks."""
  # Without ipywidgets a notebook gets a text bar; tqdm.auto would also warn.
  if in_notebook and importlib.util.find_spec("ipywidgets"):
    from tqdm.auto import tqdm
  else:
    from tqdm import tqdm

  class Bar(tqdm):
    monitor_interval = 0

  Bar.set_lock(threading.RLock())
  return Bar


class Clock:
  """Measures the seconds spent in named parts of a loop."""

  def __init__(self):
    self._spent: dict[str, float] = collections.defaultdict(float)

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Adds the time of a with-block to a part."""
    begun = time.monotonic()
    try:
      yield
    finally:
      self._spent[name] += time.monotonic() - begun

  def seconds(self, name: str) -> float:
    """Returns the seconds of a part since the last take()."""
    return self._spent.get(name, 0.0)

  def take(self) -> dict[str, float]:
    """Returns the seconds of each part since the last call, and resets them."""
    spent = dict(self._spent)
    self._spent.clear()
    return spent


class Compilations:
  """Counts the programs that JAX compiles, or reads from its cache on disk."""

  def __init__(self):
    self._seconds: list[float] = []  # per program; several threads may append

  def __call__(self, event: str, seconds: float, **_: Any) -> None:
    """Records an event of jax.monitoring."""
    if event.endswith("backend_compile_duration"):
      self._seconds.append(seconds)

  @property
  def count(self) -> int:
    """The number of programs."""
    return len(self._seconds)

  @property
  def seconds(self) -> float:
    """The total seconds of compilation, without tracing and lowering."""
    return sum(self._seconds)


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
  """Counts the programs that all threads compile within the block."""
  found = Compilations()
  jax.monitoring.register_event_duration_secs_listener(found)
  try:
    yield found
  finally:
    _unregister(found)


def _unregister(listener: Compilations) -> None:
  """Removes a listener of jax.monitoring."""
  # JAX 0.7 has this function under another name, which is not public.
  unregister = (
    getattr(jax.monitoring, "unregister_event_duration_listener", None)
    or jax._src.monitoring._unregister_event_duration_listener_by_callback
  )
  with contextlib.suppress(AssertionError):  # all listeners were cleared
    unregister(listener)


class Stopwatch:
  """Measures laps of wall time, and the time that JAX compiles in each.

  Use it as a context manager: compilation is counted within its with-block.
  """

  def __enter__(self) -> "Stopwatch":
    self._listening = compilations()
    self._compiled = self._listening.__enter__()
    self._since, self._before = time.monotonic(), 0.0
    return self

  def __exit__(self, *error: Any) -> None:
    self._listening.__exit__(*error)

  def lap(self) -> str:
    """Formats the time since the last lap: "9.1 s, 8.0 s of it compiling"."""
    now, compiled = time.monotonic(), self._compiled.seconds
    text = f"{now - self._since:.1f} s"
    if (compiling := compiled - self._before) > 0.05:
      text += f", {compiling:.1f} s of it compiling"
    self._since, self._before = now, compiled
    return text
