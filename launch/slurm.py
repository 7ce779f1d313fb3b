#!/usr/bin/env python3
r"""Submits a job on the GPUs of a SLURM cluster, one process per GPU.

  launch/slurm.sh --nodes=2 -- \
    python -m imagen_jax.train --config=configs/x.py --workdir=/shared/runs/x

COMMAND is what one types on a single machine. It runs in this checkout, which
every node must see, as must the folder it writes to. Exported variables go
along, as sbatch has it.

A job that is preempted goes back into the queue, and so does one at the end of
its --time, after a SIGTERM to its processes; train then resumes from its newest
checkpoint. To resume after a failure, submit again.

`squeue --me` prints its state, slurm-JOB.log is its log, `scancel JOB` ends it.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import launcher


def make_parser() -> launcher.Parser:
  """Returns the parser of the flags."""
  flags = launcher.Parser("launch/slurm.sh", __doc__, "[FLAGS] -- COMMAND")
  flags.define("--name", launcher.JOB, "the job's name", default="imagen_jax")
  flags.define("--nodes", launcher.COUNT, "how many", default="1")
  flags.define("--gpus_per_node", launcher.COUNT, "and processes", default="8")
  flags.define(
    "--cpus_per_gpu",
    launcher.COUNT,
    "to read data with; SLURM's own default is one",
    default="8",
  )
  cluster = "as of sbatch; the cluster's default otherwise"
  flags.define("--time", launcher.TIME, cluster)
  flags.define("--partition", launcher.LIST, cluster)
  flags.define("--account", launcher.LIST, cluster)
  flags.define(
    "--env", launcher.FLAGS_FILE, "which file of launch/env/", default="gpu"
  )
  flags.define_common("sbatch, such as --extra=--exclusive")
  return flags


def body(parser: launcher.Parser, words: list[str]) -> int:
  """Runs the program."""
  args = parser.read(words)
  launcher.need_command(args)
  launcher.need_env(args.env)
  found = [
    "sbatch",
    f"--job-name={args.name}",
    f"--nodes={args.nodes}",
    f"--ntasks-per-node={args.gpus_per_node}",
    f"--gpus-per-node={args.gpus_per_node}",
    f"--cpus-per-task={args.cpus_per_gpu}",
  ]
  for name in ("time", "partition", "account"):
    if value := getattr(args, name):
      found.append(f"--{name}={value}")
  found += [*args.extra, "launch/slurm.sbatch", args.env, *args.command]
  return launcher.run(found, dry_run=args.dry_run)


if __name__ == "__main__":
  launcher.main(make_parser(), body)
