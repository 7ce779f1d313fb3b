#!/usr/bin/env python3
"""Runs a job on a Cloud TPU VM, one host or all hosts of a pod slice.

  create  asks for the TPU; with --queued it waits in line as a queued resource
          of the same name
  setup   packs configs/, launch/ and a wheel of the package, copies them to
          every worker and installs them there; again after a change
  start   runs COMMAND on every worker, detached from this machine
  logs    follows the log of --worker; Ctrl-C ends the following only
  status  the TPU's state and what every worker does; with --queued, the queued
          resource's state
  stop    asks the run to end (SIGTERM), and after 120 s makes it
  resume  stop, then start: train resumes from its newest checkpoint
  watch   does all of it, for spot capacity: asks for a queued resource, sets it
          up, starts COMMAND, and does so again when the TPU is preempted or
          COMMAND ends with 75 or 76. Ends when COMMAND ends otherwise
  delete  gives the TPU back; gcloud asks first

COMMAND is what one types on a single machine. It runs on every worker with its
environment and the flags of launch/env/ for the TPU's generation:
  python -m imagen_jax.train --config=configs/x.py --workdir=gs://BUCKET/RUN

For more than one worker, `ssh-add ~/.ssh/google_compute_engine` first.
"""

import argparse
import os
import pathlib
import shlex
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import launcher
import watch

PROGRAM = "launch/tpu_vm.sh"
VERBS = (
  *("create", "setup", "start", "logs", "status", "stop", "resume", "watch"),
  "delete",
)
# Google changes them: `gcloud compute tpus tpu-vm versions list --zone=ZONE`.
RUNTIMES = {
  "v4": "tpu-ubuntu2204-base",
  "v5e": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v6e": "v2-alpha-tpuv6e",
}
# gcloud's flags by the subcommands that know them; --extra may hold any.
SSH_FLAGS = ("--ssh-flag", "--output-directory")
SCP_FLAGS = ("--scp-flag", "--compress", "--recurse")
CONNECTION_FLAGS = (
  *("--batch-size", "--dry-run", "--force-key-file-overwrite"),
  *("--internal-ip", "--plain", "--ssh-key-expiration"),
  *("--ssh-key-expire-after", "--ssh-key-file", "--strict-host-key-checking"),
  *("--tunnel-through-iap", *SSH_FLAGS, *SCP_FLAGS),
)
EVERYWHERE = (
  *("--access-token-file", "--account", "--billing-project"),
  *("--configuration", "--impersonate-service-account", "--log-http"),
  *("--quiet", "--trace-token", "--user-output-enabled", "--verbosity"),
)
WORKER = "imagen_jax/launch/worker.sh"  # below a worker's home
SECRETS = ".imagen_jax.env"  # there too
# Folders and wheels are replaced, so that what is gone here is gone there; the
# older layout was a whole checkout.
INSTALL = (
  "mkdir -p imagen_jax && cd imagen_jax && "
  "rm -rf imagen_jax configs launch setup.py imagen_jax-*.whl && "
  "tar -xzf ../imagen_jax.tgz && launch/worker.sh setup"
)


def make_parser() -> launcher.Parser:
  """Returns the parser of the flags."""
  flags = launcher.Parser(
    PROGRAM, __doc__, "VERB --name=NAME --zone=ZONE [FLAGS] [-- COMMAND]"
  )
  flags.define("--name", launcher.NAME, "the TPU's", variable="TPU_NAME")
  flags.define_place()
  flags.define(
    "--type",
    launcher.TYPE,
    "such as v4-32, v5p-128, v5litepod-16 (or v5e-16), v6e-64",
    variable="ACCELERATOR_TYPE",
  )
  flags.define(
    "--runtime_version",
    launcher.VERSION,
    "known for these types",
    variable="RUNTIME_VERSION",
  )
  flags.define(
    "--env", launcher.FLAGS_FILE, "which file of launch/env/; known likewise"
  )
  flags.define(
    "--worker", launcher.WORKER, "whose log: a number or all", default="0"
  )
  flags.define(
    "--every",
    launcher.COUNT,
    "seconds between the looks of watch",
    default="60",
  )
  flags.define(
    "--max_restarts",
    launcher.COUNT,
    "how often watch starts COMMAND again or asks for another TPU, in all",
    default="20",
  )
  flags.add_argument(
    "--pass_env",
    metavar="",
    action="append",
    default=[],
    help="a variable of yours, such as HF_TOKEN, for COMMAND; it travels in a "
    "file that only you can read, which is removed at the start; repeatable",
  )
  for flag, text in (
    ("--queued", "a queued resource"),
    ("--spot", "cheaper, but can be lost"),
  ):
    flags.add_argument(flag, action="store_true", help=text)
  flags.define_common(
    "gcloud, such as --extra=--reserved or --extra=--internal-ip"
  )
  return flags


def look_up(args: argparse.Namespace) -> None:
  """Fills in what the type's generation decides, if it is not given."""
  launcher.need(args, "type")
  generation = launcher.generation_of(args.type)
  if generation == "tpu7x":
    raise ValueError(
      f"type '{args.type}' is not offered as a TPU VM, only by launch/xpk.sh."
    )
  args.runtime_version = args.runtime_version or RUNTIMES.get(generation)
  args.env = args.env or generation
  if not (args.runtime_version and args.env):
    raise ValueError(
      f"type '{args.type}' is unknown, expected v4-N, v5p-N, v5litepod-N or "
      "v6e-N, or --runtime_version and --env with it."
    )
  launcher.need_env(args.env)
  args.type = launcher.platform_type(args.type)


def check_start(args: argparse.Namespace) -> None:
  """Raises ValueError for what `start` could not do."""
  look_up(args)
  launcher.need_command(args)
  launcher.need_one_line(args.command)
  launcher.passed_variables(args.pass_env)


class Tpu:
  """A TPU VM or a queued resource, by gcloud."""

  def __init__(self, args: argparse.Namespace):
    self.args = args
    self.archive = f"build/{args.name}.tgz"

  def words(self, kind: str, verb: str, *words: str) -> list[str]:
    """Returns a command of gcloud with the flags of where and of --extra."""
    args = self.args
    found = ["gcloud", "compute", "tpus", kind, verb, *words]
    found += [f"--zone={args.zone}"] if args.zone else []
    found += [f"--project={args.project}"] if args.project else []
    return [*found, *(word for word in args.extra if self.fits(verb, word))]

  def fits(self, verb: str, extra: str) -> bool:
    """Returns whether a flag of --extra is for a subcommand of gcloud."""
    flag = extra.partition("=")[0]
    if verb == "describe":
      return flag in EVERYWHERE
    if verb in ("ssh", "scp"):
      others = SCP_FLAGS if verb == "ssh" else SSH_FLAGS
      mine = self.args.verb != "watch" or flag in CONNECTION_FLAGS + EVERYWHERE
      return mine and flag not in others
    if self.args.verb == "watch":  # the only verb that does both
      return flag in EVERYWHERE or (
        verb == "create" and flag not in CONNECTION_FLAGS
      )
    return True

  def run(self, kind: str, verb: str, *words: str) -> None:
    """Runs a command of gcloud."""
    launcher.run(self.words(kind, verb, *words), dry_run=self.args.dry_run)

  def ask(self, kind: str, verb: str, *words: str) -> str:
    """Returns what a command of gcloud prints; CommandError if it fails."""
    words = self.words(kind, verb, *words)
    if self.args.dry_run:
      launcher.run(words, dry_run=True)
      return ""
    # Nobody would see a question.
    done = subprocess.run(
      words, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
      if verb == "describe" and "NOT_FOUND" in done.stderr:
        return watch.ABSENT
      print(done.stderr, end="", file=sys.stderr, flush=True)
      raise launcher.CommandError(done.returncode)
    return done.stdout.strip()

  def on(self, worker: str, command: str) -> None:
    """Runs a command of the shell on a worker or all."""
    self.run(
      *("tpu-vm", "ssh", self.args.name),
      *(f"--worker={worker}", f"--command={command}"),
    )

  def create(self) -> None:
    """Asks for the TPU."""
    args = self.args
    words = [f"--accelerator-type={args.type}", *(["--spot"] * args.spot)]
    if args.queued:
      self.run(
        *("queued-resources", "create", args.name, f"--node-id={args.name}"),
        *(*words, f"--runtime-version={args.runtime_version}"),
      )
    else:
      version = f"--version={args.runtime_version}"
      self.run("tpu-vm", "create", args.name, *words, version)

  def pack(self) -> None:
    """Makes the archive that workers get."""
    words = [sys.executable, "launch/pack.py", self.archive]
    launcher.run(words, dry_run=self.args.dry_run)

  def install(self) -> None:
    """Copies the archive to every worker and installs it."""
    self.copy(self.archive, "imagen_jax.tgz")
    self.on("all", INSTALL)

  def copy(self, path: str, name: str) -> None:
    """Copies a file into every worker's home."""
    self.run("tpu-vm", "scp", path, f"{self.args.name}:{name}", "--worker=all")

  def start(self, *, replace: bool = False) -> None:
    """Runs COMMAND on every worker; `replace` stops what runs there."""
    # The first worker decides which of two starts at once is the one; all of
    # them could decide differently.
    claim = f"{WORKER} claim" + " --replace" * replace
    self.on("0", claim)
    if replace:
      self.on("all", f"{WORKER} stop")
    self.send_secrets()
    flags = f"--env={self.args.env}" + " --secrets" * bool(self.args.pass_env)
    self.on("all", f"{WORKER} start {flags} -- {shlex.join(self.args.command)}")

  def send_secrets(self) -> None:
    """Copies the variables of --pass_env to the workers, in a file of 0600."""
    if not self.args.pass_env:
      return
    path = f"build/{self.args.name}.env"
    file = launcher.ROOT / path
    if self.args.dry_run:
      self.copy(path, SECRETS)
      return
    values = launcher.passed_variables(self.args.pass_env)
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    mode = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
      with os.fdopen(os.open(file, mode, 0o600), "w") as stream:
        stream.writelines(f"{name}={values[name]}\n" for name in values)
      self.copy(path, SECRETS)
    finally:
      file.unlink(missing_ok=True)

  def state(self) -> str:
    """Returns the queued resource's state; once ACTIVE, that of its TPU.

    ABSENT if there is none. The TPU of an active one may be lost all the same.
    """
    name = self.args.name
    state = self.ask(
      "queued-resources", "describe", name, "--format=value(state.state)"
    )
    if state != "ACTIVE" and not self.args.dry_run:
      return state
    state = self.ask("tpu-vm", "describe", name, "--format=value(state)")
    return "TERMINATED" if state == watch.ABSENT else state or "READY"

  def jobs(self) -> str:
    """Returns the state of the job on every worker, a line each."""
    return self.ask(
      *("tpu-vm", "ssh", self.args.name, "--worker=all"),
      f"--command={WORKER} status",
    )

  def give_back(self) -> None:
    """Deletes the queued resource without a question."""
    self.run(
      *("queued-resources", "delete", self.args.name, "--force", "--quiet")
    )

  def status(self) -> None:
    """Shows the state of the queued resource, or of the TPU and its workers."""
    name = self.args.name
    if self.args.queued:
      state = "--format=value(state.state)"
      self.run("queued-resources", "describe", name, state)
    else:
      self.run("tpu-vm", "describe", name, "--format=value(state)")
      self.on("all", f"{WORKER} status")

  def delete(self) -> None:
    """Deletes the TPU; gcloud asks first."""
    if self.args.queued:
      self.run("queued-resources", "delete", self.args.name, "--force")
    else:
      self.run("tpu-vm", "delete", self.args.name)


def body(parser: launcher.Parser, words: list[str]) -> int:
  """Runs the program."""
  verb = launcher.need_verb(words, VERBS)
  args = parser.read(words[1:])
  args.verb = verb
  launcher.need(args, "name")
  tpu = Tpu(args)
  if verb in ("start", "resume", "watch"):
    check_start(args)
  if verb == "watch":
    args.queued = True
    return watch.run(tpu, int(args.every), int(args.max_restarts))
  if verb in ("start", "resume"):
    tpu.start(replace=verb == "resume")
  elif verb == "create":
    look_up(args)
    tpu.create()
  elif verb == "setup":
    tpu.pack()
    tpu.install()
  elif verb == "logs":
    tpu.on(args.worker, f"{WORKER} logs")
  elif verb == "stop":
    tpu.on("all", f"{WORKER} stop")
  elif verb == "status":
    tpu.status()
  else:
    tpu.delete()
  return 0


if __name__ == "__main__":
  launcher.main(make_parser(), body)
