"""The metrics of a run: collected at every step, written every few steps."""

import types
from collections.abc import Callable, Mapping

import jax
import numpy as np

from imagen_jax.data.examples import (
  BadRecords,
  bad_sentence,
  small_sentence,
)
from imagen_jax.parallel.processes import gather_host_stats
from imagen_jax.progress import Clock, Progress
from imagen_jax.training import goodput
from imagen_jax.training.goodput import Goodput
from imagen_jax.training.metrics import Metrics, memory
from imagen_jax.training.metrics_window import (
  MetricsWindow,
  pace,
  skipped_sentence,
)
from imagen_jax.training.setup import Run

Callback = Callable[[int, dict[str, float]], None]
EMPTY: Mapping[str, float] = types.MappingProxyType({})
MICRO = 1e6  # processes exchange whole numbers, these in millionths


class Log:
  """Collects metrics between two writes; alike on all processes.

  Attributes:
    metrics: writes the numbers and images.
    goodput: where the time of all runs of the workdir went.
    bad: counts the records that were read, and the bad ones.
    clock: the seconds spent in each part of the loop.
    flops: the model's floating-point operations in a step, from which the speed
      follows; 0 until it is set.
  """

  def __init__(
    self,
    run: Run,
    metrics: Metrics,
    first: int,
    progress: Progress,
    callback: Callback | None = None,
    *,
    goodput: Goodput,
  ):
    self.metrics, self.clock, self.flops = metrics, Clock(), 0
    self.goodput = goodput
    self.bad = BadRecords(run.data.max_bad_share)
    self._run, self._progress, self._callback = run, progress, callback
    self._window = MetricsWindow(run.training.max_skipped)
    # At the last write.
    self._last, self._last_bad, self._small = first, 0, 0

  def add(self, step: int, found: dict) -> None:
    """Collects the metrics of a step that was dispatched to the devices."""
    self._window.add(step, found)

  def write(self, step: int, found: Mapping[str, float] = EMPTY) -> None:
    """Writes the metrics of all steps up to this one, and waits for them.

    Args:
      step: the newest step.
      found: further metrics of this step.

    Raises:
      ValueError: too many steps in a row were not finite (MetricsWindow.take).
    """
    # 1. Wait for the devices, and hear of the other processes.
    own = {"seconds/data": self.clock.seconds("data"), **memory()}
    with self.clock.part("compute"):  # waits for dispatched steps
      numbers, skipped = self._window.take()
      own = {name: round(MICRO * value) for name, value in own.items()}
      stats, reasons = gather_host_stats(
        (self.bad.count, self.bad.small, self.bad.read, *own.values()),
        "; ".join(self.bad.reasons),
      )
    self._progress.show(step, f"loss {numbers['loss']:.4f}")
    if skipped:
      self._progress.log(skipped_sentence(skipped))
    # 2. Report bad records, and once that there are small images.
    bad, small, read = stats[:, :3].sum(axis=0).tolist()
    if bad > self._last_bad:
      self._progress.log(bad_sentence(bad, read, reasons))
    if small and not self._small:
      self._progress.log(small_sentence(small, read))
    # 3. Compute speeds, memory and goodput.
    steps, images = step - self._last, self._run.data.batch_size
    spent = self.clock.take()
    numbers |= pace(spent, steps, images, self.flops)
    numbers |= worst(list(own), stats[:, 3:] / MICRO, steps)
    numbers |= {"bad_records": bad, "goodput": self.goodput.add(step, spent)}
    if self._run.data.least_side:
      numbers["small_images"] = small
    updates = step - int(numbers["skipped_steps"])
    numbers["learning_rate"] = float(self._run.optimizer.schedule(updates - 1))
    self._last, self._last_bad, self._small = step, bad, small
    numbers |= found
    # 4. Write all.
    with self.clock.part("host"):
      self.metrics.write(step, numbers)
      self.write_goodput(step)
      if self._callback is not None:
        self._callback(step, {k: float(v) for k, v in numbers.items()})

  def finish(self, step: int) -> str:
    """Adds the time since the last write to the goodput; returns a sentence."""
    self.goodput.add(step, self.clock.take())
    self.write_goodput(step)
    return self.goodput.sentence()

  def write_goodput(self, step: int) -> None:
    """Writes the sums of all runs of the workdir to its goodput.json."""
    self.metrics.write_file(step, goodput.FILE, self.goodput.text())


def worst(
  names: list[str], values: np.ndarray, steps: int
) -> Mapping[str, float]:
  """Returns the largest value of all hosts for each name.

  Of "seconds/data", the sum over `steps` steps, it returns the slowest host's
  seconds per step, and the host; neither if there is one host only.

  Args:
    names: k names.
    values: [hosts, k].
    steps: the number of steps.
  """
  largest = dict(zip(names, values.max(axis=0).tolist(), strict=True))
  waited = largest.pop("seconds/data")
  if jax.process_count() > 1:
    host = values[:, names.index("seconds/data")].argmax()
    largest["seconds/data_slowest"] = waited / steps
    largest["data_slowest_host"] = int(host)
  return largest
