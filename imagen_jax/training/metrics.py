"""The metrics of a run, written for TensorBoard and to metrics.jsonl."""

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

from imagen_jax import files
from imagen_jax.parallel.processes import reason
from imagen_jax.training.metric_files import EventFiles, open_lines

FILE = "metrics.jsonl"


class Metrics:
  """Writes numbers and images by step, for TensorBoard and to metrics.jsonl.

  metrics.jsonl has one object per line, ordered by step. Lines of steps after
  `first`, from which a run resumes, are dropped: those steps run again. Metrics
  that cannot be written are left out. The first failure is logged, and so is
  the first success after it. All processes but one must be quiet.
  """

  def __init__(
    self,
    workdir: str,
    first: int,
    *,
    log: Callable[[str], None] = print,
    quiet: bool = False,
  ):
    self._workdir, self._log, self._quiet = workdir, log, quiet
    self._lost_at: int | None = None  # the newest step that was not written
    self._lock = threading.Lock()
    # True if the newest line was lost. TensorBoard then gets no image either,
    # so that it holds no step that metrics.jsonl lacks.
    self._full = False
    # Event files are written in the background, which is slow on gs://. Lines
    # are not: the line of a checkpoint's step must come before the checkpoint.
    self._events = EventFiles(workdir)
    self._pool = ThreadPoolExecutor(1, "metrics")
    path = epath.Path(workdir) / FILE
    self._lines = None if quiet else open_lines(path, first, log=log)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes the numbers of a step; numbers that are not finite become null."""
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

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Writes a uint8 image [H, W, 3] of a step for TensorBoard."""
    if not self._quiet and not self._full:
      write = lambda: self._events.write_image(step, name, image)
      self._submit(step, write)

  def write_file(self, step: int, name: str, text: str) -> None:
    """Writes a small file of the workdir whole, in the background."""
    if not self._quiet:
      path = epath.Path(self._workdir) / name
      self._submit(step, lambda: files.write(path, text))

  def close(self) -> None:
    """Waits until everything is written."""
    self._pool.shutdown()

  def _submit(self, step: int, write: Callable[[], None]) -> None:
    self._pool.submit(self._draw, step, write)

  def _draw(self, step: int, write: Callable[[], None]) -> None:
    """Writes for TensorBoard, in the pool's thread."""
    try:
      write()
    except Exception as error:  # stores raise many kinds
      self._lost(step, self._workdir, error)
    else:
      self._found(step)

  def _lost(self, step: int, path: os.PathLike | str, error: Exception) -> None:
    """Logs the first of the steps that could not be written."""
    with self._lock:
      if self._lost_at is None:
        self._log(
          f"metrics cannot be written from step {step} on, {path}: "
          f"{reason(error)}; training continues without"
        )
      self._lost_at = max(step, self._lost_at or 0)

  def _found(self, step: int) -> None:
    """Logs that metrics are written again."""
    with self._lock:
      # An older step that was still queued does not count as a recovery.
      if self._lost_at is not None and step > self._lost_at:
        self._log(f"metrics are written again, from step {step} on")
        self._lost_at = None


def memory() -> dict[str, float]:
  """Measures the memory of this host in use, in GiB.

  Returns:
    The process's peak and, where known, the current and the peak use of the
    host's fullest device.
  """
  # The peak of the process: Linux counts in KiB, macOS in bytes.
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
