"""The metrics of a run: collected at every step, written every few steps."""

from collections.abc import Callable

from imagen_jax.data.examples import BadRecords, bad_sentence
from imagen_jax.parallel.processes import of_all
from imagen_jax.progress import Clock, Progress
from imagen_jax.training.metrics import Metrics, memory
from imagen_jax.training.metrics_window import Window, pace, skipped_sentence
from imagen_jax.training.setup import Run

Callback = Callable[[int, dict[str, float]], None]


class Log:
  """Collects metrics between two writes; alike on all processes.

  Attributes:
    metrics: writes the numbers and images.
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
  ):
    self.metrics, self.clock, self.flops = metrics, Clock(), 0
    self.bad = BadRecords(run.data.max_bad_share)
    self._run, self._progress, self._callback = run, progress, callback
    self._window = Window(run.training.max_skipped)
    self._last, self._last_bad = first, 0  # at the last write

  def add(self, step: int, found: dict) -> None:
    """Collects the metrics of a step that was dispatched to the devices."""
    self._window.add(step, found)

  def write(self, step: int) -> None:
    """Writes the metrics of all steps up to this one, and waits for them.

    Raises:
      ValueError: too many steps in a row were not finite, as in Window.take.
    """
    with self.clock.part("compute"):  # waits for dispatched steps
      numbers, skipped = self._window.take()
      counts, reasons = of_all(
        (self.bad.count, self.bad.read), "; ".join(self.bad.reasons)
      )
    self._progress.show(step, f"loss {numbers['loss']:.4f}")
    if skipped:
      self._progress.say(skipped_sentence(skipped))
    bad, read = counts.sum(axis=0).tolist()
    if bad > self._last_bad:
      self._progress.say(bad_sentence(bad, read, reasons))
    steps, images = step - self._last, self._run.data.batch_size
    numbers |= pace(self.clock.take(), steps, images, self.flops)
    numbers |= memory() | {"bad_records": bad}
    updates = step - int(numbers["skipped_steps"])
    numbers["learning_rate"] = float(self._run.optimizer.schedule(updates - 1))
    self._last, self._last_bad = step, bad
    with self.clock.part("host"):
      self.metrics.write(step, numbers)
      if self._callback is not None:
        self._callback(step, {k: float(v) for k, v in numbers.items()})
