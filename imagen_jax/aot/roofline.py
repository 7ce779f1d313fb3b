"""Predicts the time and cost of a program by a roofline.

docs/planning.md has the formula, its assumptions and its sources.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from imagen_jax.parallel.peaks import Speed

# Not in the paper, and not measured on a TPU yet: the share of peak that the
# products and convolutions of a step reach while they run.
SHARE = 0.5
# What a device receives for each byte that aot/collectives.py counts. A sum
# over devices is a reduce-scatter and an all-gather.
RECEIVED = {"all-reduce": 2}
# What stays as it is on each device if more devices share a batch.
OF_WEIGHTS = ("all-gather", "all-reduce", "reduce-scatter")

ASSUMPTIONS = f"""\
assumed, as docs/planning.md explains:
- published speeds; a device receives at half its links' speed, over all of them
- products run at {SHARE:.0%} of peak, beside the traffic with memory
- what devices send each other is not hidden; no waiting for data, no lost steps
- grown: FLOPs and activations by the batch of a device; the same groups of
  devices (mesh.fsdp) gather weights; slices are full pods, which sum float32
  gradients through the network of their hosts"""


@dataclasses.dataclass(frozen=True)
class Work:
  """Counts the work of one device in one run of a program.

  Attributes:
    flops: floating-point operations.
    hbm_bytes: bytes read from and written to its memory.
    ici_bytes: bytes received from devices of the same slice.
    dcn_bytes: bytes sent to other slices.
  """

  flops: float
  hbm_bytes: float
  ici_bytes: float = 0
  dcn_bytes: float = 0

  def seconds(self, speed: Speed) -> dict[str, float]:
    """Returns the seconds that each kind of work takes at a speed."""
    return {
      "compute": self.flops / (speed.tflops * 1e12),
      "hbm": self.hbm_bytes / (speed.hbm_gb * 1e9),
      "ici": self.ici_bytes / (speed.links_gb / 2 * 1e9),
      "dcn": self.dcn_bytes / (speed.network_gb * 1e9),
    }


def ici_bytes(traffic: Mapping[str, Mapping[str, Any]]) -> int:
  """Returns what a device receives within its slice.

  Args:
    traffic: count and bytes of collectives by kind.
  """
  return sum(
    RECEIVED.get(kind, 1) * part["bytes"]
    for kind, part in traffic.items()
    if kind != "cross-slice"
  )


def bound(seconds: Mapping[str, float]) -> str:
  """Returns the kind of work that takes longest at published speeds."""
  return max(seconds, key=seconds.__getitem__)


def predicted(seconds: Mapping[str, float]) -> float:
  """Returns the expected seconds of one run.

  Products reach SHARE of peak and hide the traffic with memory, or the other
  way round. Traffic between devices is not hidden.
  """
  device = max(seconds["compute"] / SHARE, seconds["hbm"])
  return device + seconds["ici"] + seconds["dcn"]


def run_of(step: float, steps: int, chips: int) -> dict[str, float]:
  """Returns the days and chip-hours of a run.

  Args:
    step: seconds of a step.
    steps: the number of steps.
    chips: the number of chips.
  """
  hours = step * steps / 3600
  return {"days": hours / 24, "chip_hours": hours * chips}


def grown(
  row: Mapping[str, Any], speed: Speed, pod: int, chips: int, fixed: bool
) -> dict[str, Any] | None:
  """Predicts a training step on another number of chips.

  Args:
    row: the row of a compiled training step.
    speed: the published speeds of a device.
    pod: the most chips of a slice.
    chips: the number of chips to predict for.
    fixed: True keeps the batch, False the batch of a chip.

  Returns:
    chips, batch, seconds by kind, step, mfu, days and chip_hours; None if there
    are more devices than examples.
  """
  devices_per_chip = row["devices"] // row["chips"]
  batch = row["batch"] if fixed else row["batch"] * chips // row["chips"]
  if batch < chips * devices_per_chip:
    return None
  examples = row["chips"] / chips if fixed else 1  # of a device, by row's own
  traffic = row["collectives"]
  weights = {kind: traffic[kind] for kind in OF_WEIGHTS if kind in traffic}
  if row["mesh"]["tensor"] > 1:  # then sums are mostly of activations
    weights.pop("all-reduce", None)
  received, kept = ici_bytes(traffic), ici_bytes(weights)
  # A device writes the weights that it gathers, and reads them.
  stored = min(row["hbm_bytes"], 2 * sum(w["bytes"] for w in weights.values()))
  slices = -(-chips // pod)
  summed = 4 * row["trained"] * row["accumulate"] * slices
  work = Work(
    row["flops"] / row["devices"] * examples,
    stored + (row["hbm_bytes"] - stored) * examples,
    kept + (received - kept) * examples,
    2 * (slices - 1) / slices * summed / (chips * devices_per_chip),
  )
  seconds = work.seconds(speed)
  step = predicted(seconds)
  useful = row["model_flops"] / row["devices"] * examples
  return {
    "chips": chips,
    "slices": slices,
    "batch": batch,
    "seconds": seconds,
    "step": step,
    "mfu": useful / (speed.tflops * 1e12) / step,
    **run_of(step, row["steps"], chips),
  }


SIZES = (64, 128, 256, 512, 1024, 2048, 4096)


def growth(
  row: Mapping[str, Any], speed: Speed, pod: int, price: float | None = None
) -> Iterator[str]:
  """Yields the lines of a table: a training step on 64 to 4,096 chips.

  Args:
    row: the row of a compiled training step.
    speed: the published speeds of a device.
    pod: the most chips of a slice.
    price: dollars of a chip-hour, if known.
  """
  head = "chips slices  batch compute    hbm    ici    dcn   step  mfu   days"
  for fixed in (True, False):
    kept = f"batch {row['batch']}" if fixed else (
      f"{row['batch'] / row['chips']:g} examples a chip"
    )  # fmt: skip
    yield f"at {kept}, in seconds and days of {row['steps']:,} steps:"
    yield head + ("      $" if price is not None else "")
    for chips in SIZES:
      it = grown(row, speed, pod, chips, fixed)
      if it is None:
        continue
      times = " ".join(f"{s:6.3f}" for s in it["seconds"].values())
      cost = ""
      if price is not None:
        cost = f" {it['chip_hours'] * price:6,.0f}"
      yield (
        f"{chips:5} {it['slices']:6} {it['batch']:6}  {times} {it['step']:6.3f}"
        f" {it['mfu']:4.0%} {it['days']:6.1f}{cost}"
      )
