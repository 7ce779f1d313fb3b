"""Every command of docs/pods.md, in order, without a cloud."""

import json
import pathlib
import re
import shlex
import subprocess

import pytest

from imagen_jax import build, train
from imagen_jax.cli import command_line

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pods.md").read_text("utf-8")
STAND_INS = ("gcloud", "ssh-add", "tensorboard", "xpk")
# Which subcommands of gcloud there are, of those that the page may use.
GCLOUD = (
  *("services enable", "compute tpus accelerator-types list"),
  *("compute networks create", "compute networks subnets create"),
  *("compute firewall-rules create", "compute routers create"),
  *("compute routers nats create", "storage buckets create"),
  *("storage buckets update", "storage buckets add-iam-policy-binding"),
  *("storage cp", "iam service-accounts create"),
  *("artifacts repositories create", "auth configure-docker"),
)


def blocks(kind: str) -> list[str]:
  """Returns the page's blocks of code of a kind."""
  return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.S | re.M)


@pytest.fixture(scope="module")
def lines():
  """The page's commands, each a line."""
  found = [line for block in blocks("bash") for line in block.splitlines()]
  assert len(found) > 30
  return found


@pytest.fixture
def printed(platform, lines):
  """What all commands print, dry, as lists of words."""
  for name in STAND_INS:
    platform.pretend(
      name, '#!/bin/sh\n{{ printf \'%s\\0\' RAN "${{0##*/}}" "$@"; echo; }}\n'
    )
  script = ["set -euo pipefail", "PS4="]
  for line in lines:
    if line.startswith("launch/"):
      before, dashes, command = line.partition(" -- ")
      line = f"{before} --dry_run{dashes}{command}"
    script.append(line)
  run = subprocess.run(
    ["bash", "-c", "\n".join(script)],
    cwd=platform.root,
    env=platform.env,
    capture_output=True,
    text=True,
  )
  assert (run.returncode, run.stderr) == (0, ""), run.stderr
  return [
    line.split("\0")[1:-1] if line.startswith("RAN\0") else shlex.split(line)
    for line in run.stdout.splitlines()
  ]


def test_every_command_runs_and_every_run_is_configured(
  platform, printed, lines
):
  programs = {words[0] for words in printed}
  assert {*STAND_INS, "docker", "kubectl"} <= programs
  for words in printed:
    assert not any("$" in word or not word for word in words), words
  known = [tuple(command.split()) for command in GCLOUD]
  ours = ("tpu-vm", "queued-resources")  # which tests of launch/ hold
  for words in printed:
    if words[0] == "gcloud" and words[3] not in ours:
      assert any(tuple(words[1 : 1 + len(k)]) == k for k in known), words
  started = trained(printed)
  assert [name for name, _ in started] == [
    *["base64"] * 2,
    *["sr256", "sr1024"],
    *["base64"] * 2,
  ]
  for _, args in started[:4]:
    run = build.run(args.config)
    assert run.training.checkpoint_every == 500
    assert run.data.data_dir == "gs://my-bucket/data"
    assert args.config.text.vocabulary.startswith("gs://my-bucket/t5/")
  for line in lines:  # each line is a command of a kind that is looked at
    assert re.match(rf"(export|launch/\w+\.sh|{'|'.join(STAND_INS)}) ", line)


def trained(printed):
  """Returns the name and flags of each command that starts a training."""
  found = []
  for words in printed:
    command = next((w for w in words if w.startswith("--command=")), "")
    if " -- python" not in command and "exec python" not in command:
      continue
    inner = shlex.split(command)
    at = inner.index("imagen_jax.train") + 1
    inner[at] = inner[at].replace("=configs", f"={ROOT}/configs")
    args = command_line.parse(train.define_flags, inner[at:])
    assert args.workdir.startswith("gs://my-bucket/runs/")
    found.append((args.workdir.rpartition("/")[2], args))
  return found


def test_the_lifecycle_deletes_no_checkpoint():
  (block,) = blocks("json")
  for rule in json.loads(block)["rule"]:
    if rule["action"]["type"] == "Delete":
      assert rule["condition"]["matchesPrefix"] == ["runs/jax_cache/"]


def test_exit_codes_are_those_of_the_programs(launchers):
  from imagen_jax.cli import program
  from imagen_jax.training import preemption

  assert launchers.watch.RESUME == (preemption.SAVED, program.LOST)
  assert launchers.local.FINAL == (1, 2, preemption.SAVED)
  codes = re.findall(r"^\| (\d+) \|", PAGE, re.M)
  assert {int(code) for code in codes} == {0, 1, 2, *launchers.watch.RESUME}
