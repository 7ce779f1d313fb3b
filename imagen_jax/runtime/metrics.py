"""Where the numbers of a run go: TensorBoard's files, and lines of JSON."""

import json
import math
import resource
import sys
from collections.abc import Mapping

import jax
import numpy as np
from clu import metric_writers
from etils import epath

FILE = "metrics.jsonl"


class Metrics:
  """Numbers and pictures by step, for TensorBoard and in metrics.jsonl.

  The latter has an object per line, in the order of steps: what it holds of
  steps after `first`, at which a run is resumed, will come again and is
  dropped. Of many processes all but one are to be quiet.
  """

  def __init__(self, workdir: str, first: int, *, quiet: bool = False):
    self._quiet = quiet
    self._path = epath.Path(workdir) / FILE
    self._writer = metric_writers.create_default_writer(
      workdir, just_logging=quiet
    )
    if not quiet and self._path.exists():
      self._keep_up_to(first)

  def _keep_up_to(self, step: int) -> None:
    """Drops later lines; who is killed meanwhile leaves the file as it was."""
    lines = self._path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if _is_up_to(line, step)]
    if kept != lines:
      new = self._path.with_name(f"{FILE}.new")
      new.write_text("".join(kept))
      new.replace(self._path)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Numbers of a step; those that are not finite become null in the JSON."""
    self._writer.write_scalars(step, dict(scalars))
    if self._quiet:
      return
    row = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
    with self._path.open("a") as file:
      file.write(json.dumps({"step": step, **row}) + "\n")

  def write_image(self, step: int, name: str, picture: np.ndarray) -> None:
    """uint8 [H, W, 3]."""
    self._writer.write_images(step, {name: picture[None]})

  def close(self) -> None:
    self._writer.close()


def _is_up_to(line: str, step: int) -> bool:
  """Whether a line is whole and of a step not after this one."""
  try:
    return json.loads(line)["step"] <= step and line.endswith("\n")
  except (ValueError, KeyError, TypeError):
    return False  # of a run that was killed while it wrote


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
