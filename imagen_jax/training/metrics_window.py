"""The metrics of several steps, reduced to the numbers that are logged."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from imagen_jax.parallel.peaks import PEAK_TFLOPS
from imagen_jax.training.step import LOGSNR_EDGES

# Steps dispatched to the devices ahead of the host's newest result. Two keep
# the devices busy. Without a limit the host runs tens of steps ahead: their
# batches fill the devices' memory, and a job that is asked to end would have to
# finish them before it can save.
_AHEAD = 2


class MetricsWindow:
  """Holds metrics of steps, left on the devices until they are needed."""

  def __init__(self, max_skipped: int):
    self._max_skipped = max_skipped
    self._steps: list[tuple[int, Mapping[str, jax.Array]]] = []

  def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """Adds a dispatched step; waits while the devices have more than two."""
    self._steps.append((step, metrics))
    if len(self._steps) > _AHEAD:
      jax.block_until_ready(self._steps[-1 - _AHEAD][1])

  def take(self) -> tuple[dict[str, float], list[int]]:
    """Reduces the metrics of all steps since the last call, and waits for them.

    Returns:
      (numbers, skipped steps). Losses are means over the steps that were not
      skipped. `loss_logsnr/LOW_HIGH` is the mean loss of a log-SNR bucket, left
      out if the bucket is empty. Other numbers are those of the last step.

    Raises:
      ValueError: max_skipped steps in a row were skipped; the first is named.
    """
    steps, self._steps = self._steps, []
    metrics = jax.device_get([metrics for _, metrics in steps])
    rows = [int(found["skipped_in_a_row"]) for found in metrics]
    for (step, _), row in zip(steps, rows, strict=True):
      if row >= self._max_skipped:
        raise ValueError(
          f"the loss or its gradient was not finite in {row} steps in a row, "
          f"from step {step - row + 1} on, expected fewer than max_skipped, "
          f"{self._max_skipped}; these steps changed nothing"
        )
    bad = [row > 0 for row in rows]
    good = [found for found, skipped in zip(metrics, bad) if not skipped]
    numbers = {k: float(v) for k, v in metrics[-1].items() if v.ndim == 0}
    numbers["loss"] = mean(found["loss"] for found in good)
    if good:
      sums, counts = np.sum([found["logsnr"] for found in good], axis=0)
      numbers |= mean_losses("loss_logsnr", sums, counts)
    skipped = [step for (step, _), is_bad in zip(steps, bad) if is_bad]
    return numbers, skipped


def skipped_sentence(steps: list[int]) -> str:
  """Names the first few steps that were skipped."""
  named = ", ".join(map(str, steps[:5])) + ", ..." * (len(steps) > 5)
  return (
    f"skipped {len(steps)} step(s) without a finite loss or gradient: {named}"
  )


def pace(
  spent: Mapping[str, float], steps: int, images: int, flops: int
) -> dict[str, float]:
  """Computes seconds per step and speeds.

  Args:
    spent: seconds of each part of the loop, over all steps.
    steps: the number of steps.
    images: images of a step, over all devices.
    flops: operations of a step, over all devices.
  """
  seconds = sum(spent.values()) / steps
  found = {f"seconds/{name}": each / steps for name, each in spent.items()}
  found |= {
    "seconds/step": seconds,
    "images_per_second": images / seconds,
    "images_per_second_per_device": images / seconds / jax.device_count(),
    "tflops_per_device": flops / seconds / jax.device_count() / 1e12,
  }
  if peak := PEAK_TFLOPS.get(jax.devices()[0].device_kind):
    found["model_flops_utilization"] = found["tflops_per_device"] / peak
  return found


def mean_losses(
  name: str, sums: np.ndarray, counts: np.ndarray
) -> dict[str, float]:
  """Returns the mean loss of each log-SNR bucket that is not empty.

  Args:
    name: the numbers' name, before the bucket's.
    sums: [buckets], of losses.
    counts: [buckets], of examples.
  """
  return {
    f"{name}/{bucket}": float(total / count)
    for bucket, total, count in zip(bucket_names(), sums, counts, strict=True)
    if count
  }


def mean(values: Any) -> float:
  """Averages numbers; NaN if there are none."""
  values = list(values)
  return float(np.mean(values)) if values else float("nan")


def bucket_names() -> list[str]:
  """Names by_logsnr's buckets: "below_-10", "-10_-5", ..., "from_10"."""
  edges = [f"{edge:g}" for edge in LOGSNR_EDGES]
  inner = [f"{low}_{high}" for low, high in itertools.pairwise(edges)]
  return [f"below_{edges[0]}", *inner, f"from_{edges[-1]}"]
