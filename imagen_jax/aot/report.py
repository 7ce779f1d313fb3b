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
from imagen_jax.aot.programs import Program
from imagen_jax.aot.topologies import Slice
from imagen_jax.parallel import memory
from imagen_jax.parallel.sharding import replicated_bytes

ABOUT = """\
# Compiled ahead of time

Written by `python -m imagen_jax.compile --json`, by the compiler that runs on
the TPUs, without any: libtpu, of the version that compiled.json says. GiB are
the peak of one device and what it has; PFLOP are of one step or one sampling,
of all devices, what is recomputed included; ideal is the time they take at
peak. Gathered and reduced is what one device receives; replicated are weights
of over 1 MiB that every device has whole. Before a command, source the flags of
its TPUs, such as `. launch/env/v4.sh`.
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
    "mesh": dict(devices.shape),
    "batch": it.batch,
    "parameters": sum(leaf.size for leaf in weights),
    "replicated_bytes": replicated_bytes(weights),
    "flops": flops,
    "ideal_seconds": flops / (tpus.peak_flops * devices.size),
    "hbm_limit_bytes": tpus.hbm_bytes,
    "libtpu": importlib.metadata.version("libtpu"),
    "libtpu_init_args": os.environ.get("LIBTPU_INIT_ARGS", "").strip(),
  }
  jitted = jax.jit(
    it.fn, donate_argnums=it.donate, out_shardings=it.out_shardings
  )
  try:
    with jax.set_mesh(devices):
      compiled = jitted.lower(*it.args).compile()
  except jax.errors.JaxRuntimeError as error:
    row |= {"fits": False, "peak_bytes": needed(error)}
  else:
    row |= {
      "fits": True,
      "peak_bytes": compiled.memory_analysis().peak_memory_in_bytes,
      "collectives": traffic_of(compiled, it.loop),
    }
  return row | {"compile_seconds": round(time.monotonic() - begun, 1)}


def traffic_of(
  compiled: jax.stages.Compiled, loop: int | None = None
) -> dict[str, Any] | None:
  """Returns count and bytes of collectives by kind; None if they are unknown.

  Args:
    compiled: the compiled program.
    loop: how often a loop of unknown length runs.
  """
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError:  # libtpu does so for some of tpu7x
    return None
  found = collectives(text, loop)
  return {k: dataclasses.asdict(v) for k, v in found.items()}


def needed(error: Exception) -> int:
  """Returns the bytes that a program would need, from the compiler's error."""
  if (found := memory.program_bytes(str(error))) is None:
    raise error
  return found[0]


def line(row: Mapping[str, Any]) -> str:
  """Formats a row for people."""
  gib = lambda count: f"{count / 2**30:.2f} GiB"
  sent = "unknown"
  if (kinds := row.get("collectives")) is not None:
    sent = ", ".join(
      f"{kind} {traffic['count']}x {gib(traffic['bytes'])}"
      for kind, traffic in kinds.items()
    )
  return (
    f"{row['program']} on {row['topology']}, batch {row['batch']}: "
    f"{'fits' if row['fits'] else 'DOES NOT FIT'}, {gib(row['peak_bytes'])} of "
    f"{gib(row['hbm_limit_bytes'])} per device; {row['flops']:.3g} FLOPs, "
    f"{row['ideal_seconds']:.3g} s at peak; sent: {sent or 'nothing'}; "
    f"replicated weights {gib(row['replicated_bytes'])}; compiled in "
    f"{row['compile_seconds']:.0f} s"
  )


def table(rows: list[dict[str, Any]]) -> str:
  """Formats rows as a Markdown table, with the commands that made them."""
  head = (
    "Program", "Chips", "Batch", "GiB per device", "PFLOP", "Ideal s",
    "Gathered GiB", "Reduced GiB", "Replicated MiB", "Compiled in s",
  )  # fmt: skip
  lines = ["|" + "|".join(head) + "|", "|" + "---|" * len(head)]
  for row in rows:
    sent = row.get("collectives")
    peak, limit = row["peak_bytes"] / 2**30, row["hbm_limit_bytes"] / 2**30
    cells = (
      f"`{row['command']}`<br>{row['program']}{tried(row)}",
      f"{row['chips']} ({row['topology']})",
      row["batch"],
      f"{peak:.1f} of {limit:.2f}" + ("" if row["fits"] else ": does not fit"),
      f"{row['flops'] / 1e15:.4g}",
      f"{row['ideal_seconds']:.3g}",
      moved(sent, "all-gather"),
      moved(sent, "all-reduce", "reduce-scatter"),
      f"{row['replicated_bytes'] / 2**20:.0f}",
      f"{row['compile_seconds']:.0f}",
    )
    lines.append("|" + "|".join(map(str, cells)) + "|")
  return "\n".join(lines) + "\n"


def tried(row: Mapping[str, Any]) -> str:
  """Formats the settings that --search chose for a row."""
  if "accumulate" not in row:
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
      f"json {path} holds something else than rows of this program, expected "
      "another file"
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
