"""What is logged of some steps: means, buckets, skipped ones, speeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.aot.topologies import CHIPS
from imagen_jax.parallel.peaks import PEAK_TFLOPS
from imagen_jax.training.metrics_window import (
  MetricsWindow,
  bucket_names,
  pace,
  skipped_sentence,
)
from imagen_jax.training.step import by_logsnr


def metrics(loss, *, row=0, total=0, logsnr=(0.0,), losses=None):
  losses = [loss] * len(logsnr) if losses is None else losses
  return {
    "loss": jnp.float32(loss),
    "skipped_steps": jnp.int32(total),
    "skipped_in_a_row": jnp.int32(row),
    "logsnr": by_logsnr(jnp.float32(losses), jnp.float32(logsnr)),
  }


def test_losses_by_logsnr():
  logsnr = np.float32([-20, -10.01, -10, -5, -0.1, 0, 4.9, 5, 10, 25])
  sums, counts = by_logsnr(jnp.arange(10.0), jnp.array(logsnr))
  np.testing.assert_array_equal(counts, [2, 1, 2, 2, 1, 2])
  np.testing.assert_array_equal(sums, [0 + 1, 2, 3 + 4, 5 + 6, 7, 8 + 9])
  assert bucket_names() == [
    "below_-10", "-10_-5", "-5_0", "0_5", "5_10", "from_10"
  ]  # fmt: skip


def test_a_nan_is_in_its_own_bucket_alone():
  sums, _ = by_logsnr(jnp.array([1.0, jnp.nan]), jnp.array([-7.0, 7.0]))
  np.testing.assert_array_equal(sums, [0, 1, 0, 0, np.nan, 0])


def test_means_over_the_steps_since_the_last_time():
  window = MetricsWindow(max_skipped=3)
  window.add(1, metrics(1.0, logsnr=(7.0, -7.0), losses=(4.0, 1.0)))
  window.add(2, metrics(3.0, logsnr=(7.0, 7.0), losses=(1.0, 1.0)))
  numbers, skipped = window.take()
  assert skipped == [] and numbers["loss"] == 2
  of = {k: v for k, v in numbers.items() if k.startswith("loss_logsnr/")}
  assert of == {"loss_logsnr/5_10": 2.0, "loss_logsnr/-10_-5": 1.0}
  assert "logsnr" not in numbers
  window.add(3, metrics(5.0))
  assert window.take()[0]["loss"] == 5


def test_skipped_steps_are_named_and_not_averaged():
  window = MetricsWindow(max_skipped=3)
  window.add(7, metrics(1.0))
  window.add(8, metrics(np.nan, row=1, total=1))
  window.add(9, metrics(np.inf, row=2, total=2))
  window.add(10, metrics(2.0, total=2))
  numbers, skipped = window.take()
  assert skipped == [8, 9]
  assert numbers["loss"] == 1.5 and numbers["skipped_steps"] == 2
  window.add(11, metrics(np.nan, row=1, total=3))
  numbers, skipped = window.take()
  assert skipped == [11] and np.isnan(numbers["loss"])
  said = "skipped 7 step(s) without a finite loss or gradient: "
  assert skipped_sentence(list(range(1, 8))) == said + "1, 2, 3, 4, 5, ..."
  assert skipped_sentence([3]).endswith("1 step(s) without a finite loss or "
                                        "gradient: 3")  # fmt: skip


def test_too_many_in_a_row_end_the_run():
  """Also if they were over before anybody looked."""
  window = MetricsWindow(max_skipped=2)
  window.add(4, metrics(np.nan, row=1))
  window.add(5, metrics(np.nan, row=2))
  window.add(6, metrics(1.0))
  with pytest.raises(ValueError, match=r"in 2 steps in a row, from step 4 on"):
    window.take()


class OnDevice:
  """An array whose step is done when a caller has waited for it."""

  done = False

  def block_until_ready(self):
    self.done = True


def test_the_host_is_two_steps_before_the_devices_and_no_more():
  window = MetricsWindow(max_skipped=2)
  losses = [OnDevice() for _ in range(5)]
  for step, loss in enumerate(losses, 1):
    window.add(step, {"loss": loss})
    assert [x.done for x in losses[:step]] == (
      [True] * (step - 2) + [False] * min(step, 2)
    )


def test_pace(monkeypatch):
  """Ten steps of 8 images in 20 seconds, of 3e12 operations each."""
  spent = {"compute": 16.0, "data": 3.0, "host": 1.0}
  found = pace(spent, 10, 8, 3 * 10**12)
  assert found["seconds/step"] == 2 and found["seconds/data"] == 0.3
  assert found["images_per_second"] == 4
  assert found["images_per_second_per_device"] == 4 / jax.device_count()
  rate = 1.5 / jax.device_count()
  assert found["tflops_per_device"] == pytest.approx(rate)
  assert "model_flops_utilization" not in found  # of a CPU no peak is known
  kind = jax.devices()[0].device_kind
  monkeypatch.setitem(PEAK_TFLOPS, kind, 100.0)
  found = pace(spent, 10, 8, 3 * 10**12)
  assert found["model_flops_utilization"] == pytest.approx(rate / 100)


def test_every_tpu_has_its_peak():
  peaks = [chip.speed.tflops for chip in CHIPS.values()]
  assert [v for k, v in PEAK_TFLOPS.items() if k.startswith("TPU")] == peaks
