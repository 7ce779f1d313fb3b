"""Where the numbers of a run go: TensorBoard's files, and lines of JSON."""

import json
import math
import os
import resource
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from etils import epath

from imagen_jax.parallel.processes import reason
from imagen_jax.training.metric_files import EventFiles, open_lines

FILE = "metrics.jsonl"


class Metrics:
  """Numbers and pictures by step, for TensorBoard and in metrics.jsonl.

  The latter has an object per line, in the order of steps: what it holds of
  steps after `first`, at which a run is resumed, will come again and is
  dropped. What cannot be written is left out: say(sentence) tells of it, once
  until it can be again. Of many processes all but one are to be quiet.
  """

  def __init__(
    self,
    workdir: str,
    first: int,
    *,
    say: Callable[[str], None] = print,
    quiet: bool = False,
  ):
    self._workdir, self._say, self._quiet = workdir, say, quiet
    self._lost_at: int | None = None  # the newest step that was not written
    self._lock = threading.Lock()
    # Whether the newest line was lost. TensorBoard then is not given what
    # metrics.jsonl lacks.
    self._full = False
    # TensorBoard's files are written in the background, for on gs:// that
    # takes long; the lines are not: a checkpoint's must not come after it.
    self._events = EventFiles(workdir)
    self._pool = ThreadPoolExecutor(1, "metrics")
    path = epath.Path(workdir) / FILE
    self._lines = None if quiet else open_lines(path, first, say=say)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Numbers of a step; those that are not finite become null in the JSON."""
    if self._quiet:
      return
    row = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
    line = json.dumps({"step": step, **row}) + "\n"
    try:
      self._lines.append(line.encode())
    except Exception as error:  # stores raise many kinds
      self._full = True
      self._lost(step, self._lines.path, error)
      return
    self._full = False
    scalars = dict(scalars)
    self._submit(step, lambda: self._events.write_scalars(step, scalars))

  def write_image(self, step: int, name: str, picture: np.ndarray) -> None:
    """uint8 [H, W, 3]."""
    if not self._quiet and not self._full:
      write = lambda: self._events.write_image(step, name, picture)
      self._submit(step, write)

  def close(self) -> None:
    """Waits until all is written."""
    self._pool.shutdown()

  def _submit(self, step: int, write: Callable[[], None]) -> None:
    self._pool.submit(self._draw, step, write)

  def _draw(self, step: int, write: Callable[[], None]) -> None:
    """Writes for TensorBoard, in the thread of the pool."""
    try:
      write()
    except Exception as error:  # stores raise many kinds
      self._lost(step, self._workdir, error)
    else:
      self._found(step)

  def _lost(self, step: int, path: os.PathLike | str, error: Exception) -> None:
    with self._lock:
      if self._lost_at is None:
        self._say(
          f"metrics cannot be written from step {step} on, {path}: "
          f"{reason(error)}; training goes on without"
        )
      self._lost_at = max(step, self._lost_at or 0)

  def _found(self, step: int) -> None:
    with self._lock:
      # Not by what was still to be written of a step before that was lost.
      if self._lost_at is not None and step > self._lost_at:
        self._say(f"metrics are written again, from step {step} on")
        self._lost_at = None


def memory() -> dict[str, float]:
  """GiB in use: of this host's process, and of its fullest device, if known."""
  # Of the process at its fullest; Linux counts in KiB, macOS in bytes.
  unit = 1 if sys.platform == "darwin" else 2**10
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  found = {"host_gib": peak / 2**30}
  stats = [device.memory_stats() for device in jax.local_devices()]
  for name, key in (
    ("device_gib", "bytes_in_use"),
    ("device_peak_gib", "peak_bytes_in_use"),
  ):
    counts = [of[key] for of in stats if of and key in of]
    if counts:
      found[name] = max(counts) / 2**30
  return found
