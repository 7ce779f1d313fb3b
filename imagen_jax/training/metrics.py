"""Where the numbers of a run go: TensorBoard's files, and lines of JSON."""

import contextlib
import json
import math
import os
import resource
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from clu import metric_writers
from etils import epath

FILE = "metrics.jsonl"
# What files, and TensorFlow's, raise.
UNWRITTEN = (OSError, tf.errors.OpError)


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
    # Whether the newest line was lost. TensorBoard's writer is not tried then:
    # each time it would begin a file, and leave it empty.
    self._full = False
    # TensorBoard's files are written in the background, for on gs:// that
    # takes long; the lines are not: a checkpoint's must not come after it.
    self._board: metric_writers.SummaryWriter | None = None
    self._pool = ThreadPoolExecutor(1, "metrics")
    self._lines = None if quiet else Lines(epath.Path(workdir) / FILE, first)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Numbers of a step; those that are not finite become null in the JSON."""
    if self._quiet:
      return
    row = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
    try:
      self._lines.add(json.dumps({"step": step, **row}))
    except UNWRITTEN as error:
      self._full = True
      self._lost(step, self._lines.path, error)
      return
    self._full = False
    scalars = dict(scalars)
    self._submit(step, lambda board: board.write_scalars(step, scalars))

  def write_image(self, step: int, name: str, picture: np.ndarray) -> None:
    """uint8 [H, W, 3]."""
    if not self._quiet and not self._full:
      images = {name: picture[None]}
      self._submit(step, lambda board: board.write_images(step, images))

  def close(self) -> None:
    """Waits until all is written."""
    self._pool.shutdown()
    if self._board is not None:
      with contextlib.suppress(*UNWRITTEN):  # every write was flushed
        self._board.close()

  def _submit(self, step: int, act: Callable[[Any], None]) -> None:
    self._pool.submit(self._draw, step, act)

  def _draw(self, step: int, act: Callable[[Any], None]) -> None:
    """Writes for TensorBoard, in the thread of the pool."""
    try:
      if self._board is None:
        self._board = metric_writers.SummaryWriter(self._workdir)
      act(self._board)
      self._board.flush()
    except UNWRITTEN as error:
      # Nothing is read of a file behind what is torn: the next is another.
      self._board = None
      self._lost(step, self._workdir, error)
    else:
      self._found(step)

  def _lost(self, step: int, path: os.PathLike | str, error: Any) -> None:
    with self._lock:
      if self._lost_at is None:
        self._say(
          f"metrics cannot be written from step {step} on, {path}: "
          f"{_reason(error)}; training goes on without"
        )
      self._lost_at = max(step, self._lost_at or 0)

  def _found(self, step: int) -> None:
    with self._lock:
      # Not by what was still to be written of a step before that was lost.
      if self._lost_at is not None and step > self._lost_at:
        self._say(f"metrics are written again, from step {step} on")
        self._lost_at = None


class Lines:
  """A file of lines, each of which is there whole or not at all.

  Object stores cannot append: what has a scheme, as gs:// has, is held in
  memory and written anew, whole, with every line.
  """

  def __init__(self, path: epath.Path, first: int):
    self.path = path
    self._held = path.read_bytes() if path.exists() else b""
    lines = self._held.splitlines(keepends=True)
    while lines and not _is_up_to(lines[-1], first):
      lines.pop()
    kept = b"".join(lines)
    self._remote, self._size = "://" in os.fspath(path), len(kept)
    if kept != self._held:
      path.write_bytes(kept) if self._remote else os.truncate(path, len(kept))
    self._held = kept if self._remote else b""

  def add(self, line: str) -> None:
    """OSError, or one of TensorFlow's, if it cannot be written."""
    data = line.encode() + b"\n"
    if self._remote:
      self.path.write_bytes(self._held + data)
      self._held += data
      return
    end = self._size
    try:
      with self.path.open("ab") as file:
        end = min(end, file.tell())  # if somebody cut the file
        file.truncate(end)  # what of a line that failed is left
        file.write(data)
    except OSError:
      with contextlib.suppress(OSError):
        os.truncate(self.path, end)
      raise
    self._size = end + len(data)


def _is_up_to(line: bytes, step: int) -> bool:
  """Whether a line is whole and of a step not after this one."""
  try:
    return json.loads(line)["step"] <= step and line.endswith(b"\n")
  except (ValueError, KeyError, TypeError):
    return False  # of a run that was killed while it wrote


def _reason(error: Any) -> str:
  """In the words of the operating system."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # TensorFlow's: its place in the program, the file; the words.
  return error.message.split("\n")[0].rpartition("; ")[2]


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
