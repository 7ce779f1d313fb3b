"""The requirements of a compiled program, as rows for people and for files."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax import files
from imagen_jax.aot.collectives import collectives
from imagen_jax.aot.hbm import hbm_bytes
from imagen_jax.aot.programs import Program
from imagen_jax.aot.roofline import Work, bound, ici_bytes, predicted, run_of
from imagen_jax.aot.topologies import Slice
from imagen_jax.parallel import memory
from imagen_jax.parallel.peaks import Speed
from imagen_jax.parallel.sharding import replicated_bytes

ABOUT = """\
# Compiled ahead of time

Written by `python -m imagen_jax.compile --json`, by the compiler that runs on
the TPUs, without any: libtpu, of the version that compiled.json says. GiB are
the peak of one device and what it has; PFLOP are of one step or one sampling,
of all devices, what is recomputed included; ideal is the time they take at
peak. HBM, ICI and DCN are the seconds of traffic with memory, between the chips
of a slice and between slices, at published speeds, and the bound is what takes
longest. The predicted seconds and MFU rest on the assumptions of
[docs/planning.md](../docs/planning.md); "?" is in rows of older versions.
Gathered and reduced is what one device receives; replicated are weights of over
1 MiB that every device has whole. Before a command, source the flags of its
TPUs, such as `. launch/env/v4.sh`.
"""


def report(it: Program, devices: Mesh, tpus: Slice) -> dict[str, Any]:
  """Compiles a program; returns a row of its properties and requirements."""
  begun = time.monotonic()
  weights = jax.tree.leaves(it.params)
  with jax.set_mesh(devices):
    flops = it.flops()
  row = {
    "program": it.name,
    "topology": tpus.name,
    "num_slices": tpus.num_slices,
    "chips": tpus.chips,
    "devices": devices.size,
    "mesh": dict(devices.shape),
    "batch": it.batch,
    "parameters": sum(leaf.size for leaf in weights),
    "replicated_bytes": replicated_bytes(weights),
    "flops": flops,
    "ideal_seconds": flops / (tpus.speed.tflops * 1e12 * devices.size),
    "hbm_limit_bytes": tpus.hbm_bytes,
    "libtpu": importlib.metadata.version("libtpu"),
    "libtpu_init_args": os.environ.get("LIBTPU_INIT_ARGS", "").strip(),
  }
  if it.training:
    with jax.set_mesh(devices):
      row["model_flops"] = it.training.useful()
    for name in ("steps", "trained", "accumulate"):
      row[name] = getattr(it.training, name)
  jitted = jax.jit(
    it.fn, donate_argnums=it.donate, out_shardings=it.out_shardings
  )
  try:
    with jax.set_mesh(devices):
      compiled = jitted.lower(*it.args).compile()
  except jax.errors.JaxRuntimeError as error:
    row |= {"fits": False, "peak_bytes": needed(error)}
  else:
    peak = compiled.memory_analysis().peak_memory_in_bytes
    row |= {"fits": True, "peak_bytes": peak}
    row |= moved_by(compiled, it.loop)
    row |= timed(row, tpus.speed)
  return row | {"compile_seconds": round(time.monotonic() - begun, 1)}


def moved_by(
  compiled: jax.stages.Compiled, loop: int | None = None
) -> dict[str, Any]:
  """Returns the collectives of a program by kind, and its traffic with memory.

  Args:
    compiled: the compiled program.
    loop: how often a loop of unknown length runs.

  Returns:
    collectives and hbm_bytes; both are None if the compiler does not show its
    program.
  """
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError:  # libtpu does so for some of tpu7x
    return {"collectives": None, "hbm_bytes": None}
  found = collectives(text, loop)
  return {
    "collectives": {k: dataclasses.asdict(v) for k, v in found.items()},
    "hbm_bytes": hbm_bytes(text, loop),
  }


def timed(row: Mapping[str, Any], speed: Speed) -> dict[str, Any]:
  """Returns a row's roofline: nothing if the traffic is unknown.

  Args:
    row: the properties of a compiled program.
    speed: the published speeds of a device.

  Returns:
    seconds by kind, bound and predicted_seconds; of a training step mfu, days
    and chip_hours too.
  """
  if (sent := row["collectives"]) is None:
    return {}
  crossing = sent.get("cross-slice", {"bytes": 0})["bytes"]
  per_device = row["flops"] / row["devices"]
  work = Work(per_device, row["hbm_bytes"], ici_bytes(sent), crossing)
  seconds = work.seconds(speed)
  step = predicted(seconds)
  found = {
    "seconds": seconds,
    "bound": bound(seconds),
    "predicted_seconds": step,
  }
  if "steps" in row:
    useful = row["model_flops"] / row["devices"] / (speed.tflops * 1e12)
    found |= {"mfu": useful / step, **run_of(step, row["steps"], row["chips"])}
  return found


def needed(error: Exception) -> int:
  """Returns the bytes that a program would need, from the compiler's error."""
  if (found := memory.program_bytes(str(error))) is None:
    raise error
  return found[0]


def line(row: Mapping[str, Any], price: float | None = None) -> str:
  """Formats a row for people.

  Args:
    row: a program's row.
    price: dollars of a chip-hour, if known.
  """
  gib = lambda count: f"{count / 2**30:.2f} GiB"
  sent = "unknown"
  if (kinds := row.get("collectives")) is not None:
    sent = ", ".join(
      f"{kind} {traffic['count']}x {gib(traffic['bytes'])}"
      for kind, traffic in kinds.items()
    )
  return (
    f"{row['program']} on {slices(row)}, batch {row['batch']}: "
    f"{'fits' if row['fits'] else 'DOES NOT FIT'}, {gib(row['peak_bytes'])} of "
    f"{gib(row['hbm_limit_bytes'])} per device; {row['flops']:.3g} FLOPs, "
    f"{row['ideal_seconds']:.3g} s at peak; {roofline(row, price)}"
    f"sent: {sent or 'nothing'}; "
    f"replicated weights {gib(row['replicated_bytes'])}; compiled in "
    f"{row['compile_seconds']:.0f} s"
  )


def roofline(row: Mapping[str, Any], price: float | None = None) -> str:
  """Formats a row's prediction, and for training the days and the cost."""
  if "seconds" not in row:
    return ""
  names = {"compute": "compute", "hbm": "HBM", "ici": "ICI", "dcn": "DCN"}
  times = ", ".join(
    f"{names[kind]} {seconds:.3g} s" for kind, seconds in row["seconds"].items()
  )
  text = (
    f"roofline {times}, bound by {names[row['bound']]}; predicted "
    f"{row['predicted_seconds']:.3g} s"
  )
  hours = row["predicted_seconds"] * row["chips"] / 3600
  if "steps" in row:
    hours = row["chip_hours"]
    text += (
      f", MFU {row['mfu']:.0%}, {row['steps']:,} steps in {row['days']:.3g} "
      f"days and {hours:,.0f} chip-hours"
    )
  if price is not None:
    text += f", ${hours * price:,.6g} at ${price:g} a chip-hour"
  return text + "; "


def slices(row: Mapping[str, Any]) -> str:
  """Formats the slices of a row, such as v4-512 or 2 x v5e-256."""
  count = row.get("num_slices", 1)
  return row["topology"] if count == 1 else f"{count} x {row['topology']}"


def table(rows: list[dict[str, Any]]) -> str:
  """Formats rows as a Markdown table, with the commands that made them."""
  head = (
    "Program", "Chips", "Batch", "GiB per device", "PFLOP", "Ideal s",
    "HBM s", "ICI s", "DCN s", "Bound", "Predicted s", "MFU", "Gathered GiB",
    "Reduced GiB", "Replicated MiB", "Compiled in s",
  )  # fmt: skip
  lines = ["|" + "|".join(head) + "|", "|" + "---|" * len(head)]
  for row in rows:
    sent = row.get("collectives")
    peak, limit = row["peak_bytes"] / 2**30, row["hbm_limit_bytes"] / 2**30
    cells = (
      f"`{row['command']}`<br>{row['program']}{tried(row)}",
      f"{row['chips']} ({slices(row)})",
      row["batch"],
      f"{peak:.1f} of {limit:.2f}" + ("" if row["fits"] else ": does not fit"),
      f"{row['flops'] / 1e15:.4g}",
      f"{row['ideal_seconds']:.3g}",
      *(third(row.get("seconds", {}).get(k)) for k in ("hbm", "ici", "dcn")),
      row.get("bound", "?"),
      third(row.get("predicted_seconds")),
      f"{row['mfu']:.0%}" if "mfu" in row else "",
      moved(sent, "all-gather"),
      moved(sent, "all-reduce", "reduce-scatter"),
      f"{row['replicated_bytes'] / 2**20:.0f}",
      f"{row['compile_seconds']:.0f}",
    )
    lines.append("|" + "|".join(map(str, cells)) + "|")
  return "\n".join(lines) + "\n"


def third(seconds: float | None) -> str:
  """Formats seconds to three digits, "?" if they are unknown."""
  return "?" if seconds is None else f"{seconds:.3g}"


def tried(row: Mapping[str, Any]) -> str:
  """Formats the settings that --search chose for a row."""
  if "remat" not in row:
    return ""
  remat = ", ".join(row["remat"])
  return f" (accumulate {row['accumulate']}, remat {remat})"


def moved(sent: Mapping[str, Any] | None, *kinds: str) -> str:
  """Formats the GiB of some kinds of collectives."""
  if sent is None:
    return "?"
  total = sum(sent[kind]["bytes"] for kind in kinds if kind in sent)
  return f"{total / 2**30:.1f}"


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the rows that keep wrote; none if there is no file.

  Raises:
    ValueError: the file cannot be read, or holds something else.
  """
  rows = files.read_json(path, "json") if path.exists() else []
  try:
    table(rows)
    _ = [row["command"] for row in rows]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"json {path} has no rows of imagen_jax.compile, expected a new file or "
      "one that it wrote"
    ) from error
  return rows


def keep(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Writes rows to a JSON file, in place of older rows of the same commands.

  All rows are also written as a table to a .md file beside it.
  """
  old = rows_of(path)
  commands = {row["command"] for row in rows}
  rows = [row for row in old if row["command"] not in commands] + rows
  texts = {path: json.dumps(rows, indent=1) + "\n"}
  texts[path.with_suffix(".md")] = f"{ABOUT}\n{table(rows)}"
  for target, text in texts.items():
    files.write(target, text)
