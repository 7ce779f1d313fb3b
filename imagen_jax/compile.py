"""Compiles a config's programs for a TPU slice, without one, and reports.

  python -m imagen_jax.compile --config=configs/base_64.py --topology=v4-512

Compiles the real step of the real config at the real batch size with the real
compiler. The report has the memory needed and whether it fits, the operations,
the traffic between devices, and a roofline: the predicted time, and for
training the days, chip-hours and cost on 64 to 4,096 chips (docs/planning.md).
It needs the libtpu package, but no TPU. The exit code is 3 if a program does
not fit.
"""

import os

from imagen_jax.aot.topologies import COMPILE_ONLY, Slice, tpu_slice

if __name__ == "__main__":  # before importing JAX, which reads them
  os.environ.update(COMPILE_ONLY)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import math
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from jax.sharding import Mesh

from imagen_jax import build
from imagen_jax.aot import programs, search
from imagen_jax.aot.report import keep, line, report, rows_of, tried
from imagen_jax.aot.roofline import ASSUMPTIONS, growth
from imagen_jax.cli import command_line, program
from imagen_jax.parallel import mesh
from imagen_jax.progress import print_line

NOT_FITTING = 3
BEST = 3  # the candidates of a search that are compiled in any case


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/base_64.py")
  flags.DEFINE_string(
    "topology", None, "A TPU slice by its name, such as v4-512 or v5e-8.", **on
  )
  flags.DEFINE_integer("num_slices", 1, "The number of slices.", **on)
  flags.DEFINE_enum(
    "mode", None, ["train", "sample", "embed"],
    "What to compile: a stage's training step, a cascade's sampling or T5; by "
    "default, that of the config.", **on
  )  # fmt: skip
  command_line.define_path(
    values, "json", None, "The JSON file to add the rows to."
  )
  flags.DEFINE_boolean(
    "search", False,
    "Order accumulate and remat by an estimate of the step's time, compile the "
    "best three, and more until one fits.", **on
  )  # fmt: skip
  flags.DEFINE_float(
    "price", None, "Dollars of a chip-hour, to print costs.",
    lower_bound=0, **on
  )  # fmt: skip


def the_command(argv: Sequence[str]) -> str:
  """Returns the command that makes a row again, but for compiler flags."""
  args = iter(argv)
  kept = []
  for arg in args:
    name, equals, _ = arg.lstrip("-").partition("=")
    if not arg.startswith("-") or name not in ("json", "price"):
      kept.append(arg)
    elif not equals:
      next(args)  # its value
  return shlex.join(["python", "-m", "imagen_jax.compile", *kept])


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Compiles the programs, prints a row for each, and exits with 3 if unfit."""
  config = args.config
  if not args.topology:
    raise ValueError("--topology is needed, such as v4-512 or v5e-8")
  mode = args.mode or programs.mode_of(config)
  if args.search and mode != "train":
    raise ValueError(f"--search is for training steps, this is --mode={mode}")
  if args.json:
    program.check_output("json", args.json)
    rows_of(pathlib.Path(args.json))
  tpus = tpu_slice(args.topology, args.num_slices)
  if mode == "sample":
    devices = build.sampling_devices(config, tpus.devices)
  else:
    devices = mesh.make_mesh(build.mesh(config), tpus.devices)
  command = the_command(command_line.given(args))
  rows = []

  def compiled(tried: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for it in programs.of(config, mode, devices):
      print_line(f"compiling {it.name} for {tpus.name} ... {tried or ''}")
      row = report(it, devices, tpus) | tried
      print_line(line(row, args.price))
      found.append(row)
      rows.append({"command": command, **row})
      if args.json:  # each row may take hours
        keep(pathlib.Path(args.json), rows)
    return found

  if args.search:
    kept = searched(config, devices, tpus, compiled)
  else:
    kept = compiled({})
  for row in kept:
    if "steps" in row and "seconds" in row:
      for text in growth(row, tpus.speed, tpus.pod, args.price):
        print_line(text)
  print_line(ASSUMPTIONS)
  if not all(row["fits"] for row in kept):
    sys.exit(NOT_FITTING)


def searched(
  config: Any,
  devices: Mesh,
  tpus: Slice,
  compiled: Callable[[dict[str, Any]], list[dict[str, Any]]],
) -> list[dict[str, Any]]:
  """Compiles candidates until BEST are compiled and one fits.

  Args:
    config: a stage's config, changed in place.
    devices: the mesh.
    tpus: the devices to compile for.
    compiled: compiles the config and returns its row, given the settings tried.

  Returns:
    The row that fits and is predicted to be fastest; else the last row.
  """
  fitting, row = [], {}
  order = search.ranked(config, devices, tpus.speed, tpus.hbm_bytes)
  for at, it in enumerate(order, 1):
    (row,) = compiled(search.set_candidate(config, it.accumulate, it.remat))
    if row["fits"]:
      fitting.append(row)
    if at >= BEST and fitting:
      break
  # The compiler for some TPUs does not show its program.
  speed = lambda row: row.get("predicted_seconds", math.inf)
  if fitting:
    row = min(fitting, key=speed)
    print_line(f"the fastest that fits:{tried(row)}")
  return [row]


if __name__ == "__main__":
  program.run(main)
