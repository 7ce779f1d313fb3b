"""Compiles a config's programs for a TPU slice, without one, and reports.

  python -m imagen_jax.compile --config=configs/base_64.py --topology=v4-512

Compiles the real step of the real config at the real batch size with the real
compiler. The report has the memory needed and whether it fits, the operations
and the traffic between devices. It needs the libtpu package, but no TPU. The
exit code is 3 if a program does not fit.
"""

import os

from imagen_jax.aot.topologies import COMPILE_ONLY, tpu_slice

if __name__ == "__main__":  # before importing JAX, which reads them
  os.environ.update(COMPILE_ONLY)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from imagen_jax import build
from imagen_jax.aot import programs
from imagen_jax.aot.report import keep, line, report, rows_of
from imagen_jax.aot.search import searched
from imagen_jax.cli import command_line, program
from imagen_jax.parallel import mesh
from imagen_jax.progress import say

NOT_FITTING = 3


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/base_64.py")
  flags.DEFINE_string(
    "topology", None, "A TPU slice by its name, such as v4-512 or v5e-8.", **on
  )
  flags.DEFINE_integer("num_slices", 1, "How many such slices.", **on)
  flags.DEFINE_enum(
    "mode", None, ["train", "sample", "embed"],
    "What to compile; by default what the config is of: a stage, a cascade, "
    "T5.", **on
  )  # fmt: skip
  command_line.define_path(
    values, "json", None, "A JSON file to put the rows into."
  )
  flags.DEFINE_boolean(
    "search", False,
    "Try less and less memory until a training step fits.", **on
  )  # fmt: skip


def the_command(argv: Sequence[str]) -> str:
  """Returns the command that makes a row again, but for compiler flags."""
  args = iter(argv)
  kept = []
  for arg in args:
    if arg in ("--json", "-json"):
      next(args)  # its value
    elif not arg.lstrip("-").startswith("json="):
      kept.append(arg)
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
  rows, fits = [], True
  ways = mesh.row_ways(devices)
  for tried in searched(config, ways) if args.search else [{}]:
    found = []
    for it in programs.of(config, mode, devices):
      say(f"compiling {it.name} for {tpus.name} ... {tried or ''}")
      row = report(it, devices, tpus) | tried
      say(line(row))
      found.append(row)
      rows.append({"command": the_command(command_line.given(args)), **row})
      if args.json:  # each row may take hours
        keep(pathlib.Path(args.json), rows)
    fits = all(row["fits"] for row in found)
    if args.search and fits:
      break
  if not fits:
    sys.exit(NOT_FITTING)


if __name__ == "__main__":
  program.run(main)
