"""Compiles a config's programs for a TPU slice, without one, and reports.

  python -m imagen_jax.compile --config=configs/base64.py --topology=v4-512

The real step of the real config at the real batch, by the real compiler: what
memory it needs and whether that fits, its operations, what the devices send to
each other. Needs the libtpu package, but no TPU. Exit code 3 if something does
not fit.
"""

import os

from imagen_jax.runtime.topologies import COMPILE_ONLY, Slice, tpu_slice

# Before JAX is imported, which reads them.
os.environ.update(COMPILE_ONLY)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import json
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from imagen_jax import build, programs
from imagen_jax.runtime import mesh, program
from imagen_jax.runtime.collectives import collectives
from imagen_jax.runtime.flops import count_flops
from imagen_jax.runtime.sharding import replicated_bytes

read_config = program.define_config("configs/base64.py")
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "A TPU slice by its name, such as v4-512 or v5e-8."
)
NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "How many such slices.")
MODE = flags.DEFINE_enum(
  "mode", None, ["train", "sample", "embed"],
  "What to compile; by default what the config is of: a stage, a cascade, T5.",
)  # fmt: skip
JSON = flags.DEFINE_string("json", None, "A JSON file to put the rows into.")
SEARCH = flags.DEFINE_boolean(
  "search", False, "Try less and less memory until a training step fits."
)

NOT_FITTING = 3
# Of --search: in how many parts a batch is computed.
ACCUMULATE = (1, 2, 4, 8)


def report(
  compiled_for: programs.Program, devices: Mesh, tpus: Slice
) -> dict[str, Any]:
  """One row: what a program is, and what the compiler says of it."""
  it, begun = compiled_for, time.monotonic()
  weights = jax.tree.leaves(it.params)
  with jax.set_mesh(devices):
    flops = count_flops(it.fn, *it.args)
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
    traffic = collectives(compiled.as_text())
    row |= {
      "fits": True,
      "peak_bytes": compiled.memory_analysis().peak_memory_in_bytes,
      "collectives": {k: dataclasses.asdict(v) for k, v in traffic.items()},
    }
  return row | {"compile_seconds": round(time.monotonic() - begun, 1)}


def needed(error: Exception) -> int:
  """Bytes that a program would have needed, by the compiler's message."""
  found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", str(error))
  if not found:
    raise error
  return int(float(found[1]) * 1024 ** (" KMGT".index(found[2])))


def line(row: Mapping[str, Any]) -> str:
  """A row for people."""
  gib = lambda count: f"{count / 2**30:.2f} GiB"
  sent = ", ".join(
    f"{kind} {traffic['count']}x {gib(traffic['bytes'])}"
    for kind, traffic in row.get("collectives", {}).items()
  )
  return (
    f"{row['program']} on {row['topology']}, batch {row['batch']}: "
    f"{'fits' if row['fits'] else 'DOES NOT FIT'}, {gib(row['peak_bytes'])} of "
    f"{gib(row['hbm_limit_bytes'])} per device; {row['flops']:.3g} FLOPs, "
    f"{row['ideal_seconds']:.3g} s at peak; sent: {sent or 'nothing'}; "
    f"replicated weights {gib(row['replicated_bytes'])}; compiled in "
    f"{row['compile_seconds']:.0f} s"
  )


def remat_choices(net: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Policies by level, from the least recomputation to the most.

  The levels of high resolution, whose blocks are large and cheap, come first.
  """
  levels = len(net["channel_mult" if "channel_mult" in net else "blocks"])
  yield ("none",) * levels
  for keep in ("none", "products", "full"):
    for cut in range(1, levels + 1):
      worse = {"none": "products", "products": "full"}.get(keep)
      if worse:
        yield (worse,) * cut + (keep,) * (levels - cut)


def set_remat(net: Any, policies: tuple[str, ...]) -> None:
  """Gives a net's config one policy per level."""
  if "channel_mult" in net:
    net.remat = policies
  else:
    net.blocks = tuple(
      {**block, "remat": policy} for block, policy in zip(net.blocks, policies)
    )


def searched(config: Any) -> Iterator[str]:
  """Changes the config to each candidate in turn; yields its description."""
  for accumulate in ACCUMULATE:
    for policies in remat_choices(config.stage.net):
      config.train.accumulate = accumulate
      set_remat(config.stage.net, policies)
      yield f"accumulate={accumulate} remat={','.join(policies)}"


def keep(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Puts rows into a JSON file, in place of those of the same command."""
  old = json.loads(path.read_text()) if path.exists() else []
  commands = {row["command"] for row in rows}
  old = [row for row in old if row["command"] not in commands]
  part = path.with_name(path.name + ".part")
  part.write_text(json.dumps(old + rows, indent=1) + "\n")
  part.replace(path)


def main() -> None:
  config = read_config()
  if not TOPOLOGY.value:
    raise ValueError("--topology is needed, such as v4-512 or v5e-8")
  mode = MODE.value or (
    "train"
    if "stage" in config
    else "sample"
    if "stages" in config
    else "embed"
  )
  if SEARCH.value and mode != "train":
    raise ValueError(f"--search is for training steps, this is --mode={mode}")
  tpus = tpu_slice(TOPOLOGY.value, NUM_SLICES.value)
  devices = mesh.make_mesh(build.mesh(config), tpus.devices)
  args = [arg for arg in sys.argv[1:] if not arg.startswith("--json")]
  command = " ".join(["python -m imagen_jax.compile", *args])
  rows = []
  for note in searched(config) if SEARCH.value else [None]:
    found = [
      report(p, devices, tpus) for p in programs.of(config, mode, devices)
    ]
    for row in found:
      rows.append(
        {"command": command, **({"tried": note} if note else {}), **row}
      )
      print(f"{note + ': ' if note else ''}{line(row)}", flush=True)
    if SEARCH.value and all(row["fits"] for row in found):
      break
  if JSON.value:
    keep(pathlib.Path(JSON.value).expanduser(), rows)
  fits = rows[-1]["fits"] if SEARCH.value else all(r["fits"] for r in rows)
  if not fits:
    sys.exit(NOT_FITTING)


if __name__ == "__main__":
  program.run(main)
