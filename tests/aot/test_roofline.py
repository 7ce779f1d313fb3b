"""The roofline: closed forms, and how a step grows with the chips."""

import pytest

from imagen_jax.aot import report
from imagen_jax.aot.roofline import (
  Work,
  bound,
  grown,
  growth,
  ici_bytes,
  predicted,
  run_of,
)
from imagen_jax.parallel.peaks import Speed

# 1 TFLOP/s; 10, 4 and 1 GB/s: a device receives 2 GB/s.
SPEED = Speed(tflops=1.0, hbm_gb=10.0, links_gb=4.0, network_gb=1.0)
GB = 10**9


def test_each_kind_of_work_takes_its_time():
  work = Work(2e12, 5 * GB, 6 * GB, GB // 2)
  seconds = work.seconds(SPEED)
  assert seconds == {"compute": 2.0, "hbm": 0.5, "ici": 3.0, "dcn": 0.5}
  assert bound(seconds) == "ici"
  # Products at half of peak hide the memory; the rest is added.
  assert predicted(seconds) == 4 + 3 + 0.5
  assert predicted(seconds | {"hbm": 9.0}) == 9 + 3 + 0.5


@pytest.mark.parametrize("kind", ["compute", "hbm", "ici", "dcn"])
def test_the_bound_is_what_takes_longest(kind):
  seconds = dict.fromkeys(("compute", "hbm", "ici", "dcn"), 1.0)
  assert bound(seconds | {kind: 2.0}) == kind


def test_a_sum_is_received_twice_and_other_slices_are_apart():
  sent = {
    "all-gather": {"bytes": 1},
    "all-reduce": {"bytes": 10},
    "reduce-scatter": {"bytes": 100},
    "collective-permute": {"bytes": 1000},
    "cross-slice": {"bytes": 10**6},
  }
  assert ici_bytes(sent) == 1121


def test_a_run_is_its_steps():
  assert run_of(0.36, 10**6, 256) == {
    "days": pytest.approx(100 / 24),
    "chip_hours": pytest.approx(25_600),
  }


def row(**changes):
  """A step of 256 chips: 1 s of compute, 0.5 s of HBM, 2 s of ICI."""
  found = {
    "program": "train",
    "topology": "v5e-256",
    "num_slices": 1,
    "chips": 256,
    "devices": 256,
    "mesh": {"data": 4, "fsdp": 64, "tensor": 1},
    "batch": 1024,
    "flops": 256 * 1e12,
    "model_flops": 128 * 1e12,
    "ideal_seconds": 1.0,
    "steps": 1000,
    "trained": 32 * 10**6,
    "accumulate": 1,
    "hbm_bytes": 5 * GB,
    "collectives": {
      "all-gather": {"count": 1, "bytes": GB, "at_least": False},
      "all-reduce": {"count": 1, "bytes": GB, "at_least": False},
      "collective-permute": {"count": 1, "bytes": GB, "at_least": False},
    },
    "fits": True,
    "peak_bytes": 2**30,
    "hbm_limit_bytes": 2**31,
    "replicated_bytes": 0,
    "compile_seconds": 1.0,
  }
  return found | changes


def test_on_its_own_chips_a_step_is_itself():
  for fixed in (True, False):
    it = grown(row(), SPEED, 256, 256, fixed)
    assert it["seconds"] == {"compute": 1.0, "hbm": 0.5, "ici": 2.0, "dcn": 0}
    assert it["step"] == report.timed(row(), SPEED)["predicted_seconds"] == 4
    assert it["mfu"] == report.timed(row(), SPEED)["mfu"] == 0.125
    assert (it["batch"], it["slices"]) == (1024, 1)


def test_at_a_fixed_batch_the_weights_stay_and_the_rest_is_shared():
  it = grown(row(), SPEED, 512, 512, True)
  assert it["batch"] == 1024
  # Of 5 GB of memory 4 are of weights; of 4 received, 3.
  assert it["seconds"] == {"compute": 0.5, "hbm": 0.45, "ici": 1.75, "dcn": 0}
  assert it["chip_hours"] == pytest.approx(it["step"] * 1000 / 3600 * 512)


def test_at_a_fixed_batch_of_a_chip_only_the_network_is_added():
  it = grown(row(), SPEED, 256, 1024, False)
  assert (it["batch"], it["slices"]) == (4096, 4)
  # Each chip holds 4 x 32e6 / 256 bytes of gradients, after its slice's sum.
  dcn = 2 * (3 / 4) * 4 * 32e6 / 256 / GB
  assert it["seconds"] == {
    "compute": 1.0, "hbm": 0.5, "ici": 2.0, "dcn": pytest.approx(dcn)
  }  # fmt: skip
  parts = grown(row(accumulate=3), SPEED, 256, 1024, False)
  assert parts["seconds"]["dcn"] == pytest.approx(3 * dcn)


def test_sums_over_a_tensor_axis_are_of_activations():
  tensor = row(mesh={"data": 4, "fsdp": 32, "tensor": 2})
  it = grown(tensor, SPEED, 512, 512, True)
  assert it["seconds"]["ici"] == (1 + 3 / 2) / 2
  assert it["seconds"]["hbm"] == (2 + 3 / 2) / 10


def test_more_devices_than_examples_are_left_out():
  assert grown(row(), SPEED, 4096, 2048, True) is None
  two = row(devices=512)  # of a chip
  assert grown(two, SPEED, 4096, 512, True) is not None
  assert grown(two, SPEED, 4096, 1024, True) is None


def test_the_table_has_both_ways_to_grow_and_the_cost():
  lines = list(growth(row(), SPEED, 256, price=2.0))
  assert lines[0].startswith("at batch 1024, ")
  fixed, each = lines[:7], lines[7:]
  sizes = [int(text.split()[0]) for text in fixed[2:]]
  assert sizes == [64, 128, 256, 512, 1024]
  assert each[0].startswith("at 4 examples a chip, ")
  assert [int(text.split()[0]) for text in each[2:]][-1] == 4096
  *_, days, dollars = fixed[4].split()  # 256 chips, 4 s a step
  assert float(days) == pytest.approx(4000 / 3600 / 24, abs=0.06)
  assert float(dollars) == round(4000 / 3600 * 256 * 2)
  assert all(len(text) <= 80 for text in lines)


def test_a_line_says_what_a_run_takes():
  found = row() | report.timed(row(), SPEED)
  said = report.line(found, price=1.2)
  assert (
    "roofline compute 1 s, HBM 0.5 s, ICI 2 s, DCN 0 s, bound by ICI; "
    "predicted 4 s, MFU 12%, 1,000 steps in 0.0463 days and 284 chip-hours, "
    "$341.333 at $1.2 a chip-hour; "
  ) in said
  assert "$" not in report.line(found)
  assert "roofline" not in report.line(row(collectives=None))
  assert report.timed(row(collectives=None), SPEED) == {}


def test_a_row_of_several_slices():
  sent = {"cross-slice": {"count": 1, "bytes": GB, "at_least": False}}
  two = row(num_slices=2, collectives=sent)
  assert report.timed(two, SPEED)["seconds"]["dcn"] == 1.0
  assert "train on 2 x v5e-256, " in report.line(two)
  assert "|256 (2 x v5e-256)|" in report.table([two | {"command": "a"}])
