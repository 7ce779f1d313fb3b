#!/usr/bin/env python3
"""Runs a workload on TPUs of a GKE cluster, by xpk (`pip install xpk`).

  image   packs configs/, launch/ and a wheel, builds launch/Dockerfile of that
          as --image and pushes it; again after a change
  start   runs COMMAND on every host of every slice. What is preempted (train
          then ends with 75), has lost a host (76), is killed or ends with exit
          code 127 or above starts again by itself, up to --max_restarts times;
          train resumes from its newest checkpoint
  logs    follows the log of host --worker of each slice, with kubectl
  status  the workload's state
  resume  deletes what is left of the workload, then starts it again
  delete  deletes it

COMMAND is what one types on a single machine, and runs in the image with the
flags of launch/env/ for the TPU's generation, and for several slices:
  python -m imagen_jax.train --config=configs/x.py --workdir=gs://BUCKET/RUN
"""

import argparse
import pathlib
import re
import shlex
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import launcher

PROGRAM = "launch/xpk.sh"
VERBS = ("image", "start", "logs", "status", "resume", "delete")
IMAGE_FOLDER = "build/image"  # what docker sees, and nothing else


def make_parser() -> launcher.Parser:
  """Returns the parser of the flags."""
  flags = launcher.Parser(
    PROGRAM, __doc__, "VERB --name=NAME --cluster=CLUSTER [FLAGS] [-- COMMAND]"
  )
  flags.define("--name", launcher.WORKLOAD, "the workload's")
  flags.define(
    "--cluster",
    launcher.NAME,
    "one made by `xpk cluster create`",
    variable="CLUSTER",
  )
  flags.define_place()
  flags.define(
    "--type",
    launcher.TYPE,
    "such as v4-32, v5p-128, v5litepod-16 or v5e-16, v6e-256, tpu7x-2x2x4",
    variable="ACCELERATOR_TYPE",
  )
  flags.define("--num_slices", launcher.COUNT, "how many of these", default="1")
  flags.define(
    "--env",
    launcher.FLAGS_FILE,
    "which file of launch/env/; that of the type otherwise",
  )
  flags.define(
    "--image",
    launcher.IMAGE,
    "as REGION-docker.pkg.dev/PROJECT/X/Y",
    variable="IMAGE",
  )
  flags.define("--max_restarts", launcher.COUNT, "at most", default="10")
  flags.define("--worker", launcher.INDEX, "whose log", default="0")
  flags.add_argument(
    "--pass_env",
    metavar="",
    action="append",
    default=[],
    help="a variable of yours, such as HF_TOKEN, for the workload; xpk reads "
    "its value from your environment and writes it into the workload's "
    "description; repeatable",
  )
  flags.define_common("xpk workload create, such as --extra=--spot")
  return flags


def workload(
  args: argparse.Namespace, verb: str, *words: str, check: bool = True
) -> int:
  """Runs xpk workload VERB, with the flags of where."""
  launcher.need(args, "name", "cluster")
  found = ["xpk", "workload", verb, *words, f"--cluster={args.cluster}"]
  found += [f"--zone={args.zone}"] if args.zone else []
  found += [f"--project={args.project}"] if args.project else []
  return launcher.run(found, dry_run=args.dry_run, check=check)


def build_image(args: argparse.Namespace) -> None:
  """Packs what an image needs, builds it and pushes it."""
  launcher.need(args, "image")
  for words in (
    [sys.executable, "launch/pack.py", IMAGE_FOLDER],
    [
      *("docker", "build", "--platform=linux/amd64"),
      f"--file={IMAGE_FOLDER}/launch/Dockerfile",
      *(f"--tag={args.image}", IMAGE_FOLDER),
    ],
    ["docker", "push", args.image],
  ):
    launcher.run(words, dry_run=args.dry_run)


def check_start(args: argparse.Namespace) -> None:
  """Fills in --env; ValueError for what `start` could not do."""
  launcher.need(args, "name", "cluster", "type", "image")
  launcher.need_command(args)
  args.env = args.env or launcher.generation_of(args.type)
  if not args.env:
    raise ValueError(
      f"type '{args.type}' is unknown, expected v4-N, v5p-N, v5litepod-N, "
      "v6e-N or tpu7x-N, with a topology such as 4x4 for N or a number, or "
      "--env with it."
    )
  launcher.need_env(args.env)
  launcher.need_one_line(args.command)
  for name, value in launcher.passed_variables(args.pass_env).items():
    if re.search(r'["\\]', value):  # xpk writes it into YAML, between quotes
      raise ValueError(
        f"--pass_env={name} holds a quote or backslash, which xpk cannot pass "
        "on, expected none."
      )


def start(args: argparse.Namespace) -> None:
  """Creates the workload."""
  # exec, so that the SIGTERM before an eviction reaches COMMAND itself, which
  # has two minutes to end.
  slices = " && . launch/env/dcn.sh" if int(args.num_slices) > 1 else ""
  command = f". launch/env/{args.env}.sh{slices} && exec "
  command += shlex.join(args.command)
  workload(
    args,
    "create",
    f"--workload={args.name}",
    f"--tpu-type={launcher.platform_type(args.type)}",
    f"--num-slices={args.num_slices}",
    f"--docker-image={args.image}",
    f"--max-restarts={args.max_restarts}",
    "--restart-on-exit-codes=75,76",
    "--termination-grace-period-seconds=120",
    f"--command={command}",
    *(f"--env={name}" for name in args.pass_env),
    *args.extra,
  )


def logs(args: argparse.Namespace) -> None:
  """Follows the log of one host of each slice."""
  launcher.need(args, "name")
  labels = f"jobset.sigs.k8s.io/jobset-name={args.name}"
  labels += f",batch.kubernetes.io/job-completion-index={args.worker}"
  launcher.run(
    [
      *("kubectl", "logs", "--follow", "--prefix", "--all-containers"),
      *("--tail=1000", "--max-log-requests=100", f"--selector={labels}"),
    ],
    dry_run=args.dry_run,
  )


def body(parser: launcher.Parser, words: list[str]) -> None:
  """Runs the program."""
  verb = launcher.need_verb(words, VERBS)
  args = parser.read(words[1:])
  if verb == "image":
    build_image(args)
  elif verb == "logs":
    logs(args)
  elif verb == "status":
    workload(args, "list", f"--filter-by-job={args.name}")
  elif verb == "delete":
    workload(args, "delete", f"--workload={args.name}")
  else:
    check_start(args)
    if verb == "resume" and workload(
      args, "delete", f"--workload={args.name}", check=False
    ):
      print(f"{PROGRAM}: nothing was deleted; starting", file=sys.stderr)
    start(args)


if __name__ == "__main__":
  launcher.main(make_parser(), body)
