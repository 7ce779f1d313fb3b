"""launch/xpk.sh: its xpk, docker and kubectl commands."""

import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ("docker", "kubectl", "xpk")
FLAGS = (
  "--name=r",
  "--cluster=c",
  "--zone=z",
  "--project=p",
  "--type=v6e-256",
  "--image=i",
)
COMMAND = ("--", "python", "-m", "x", "--config=it's a.py", "--w=gs://b/$HOME")


@pytest.mark.parametrize(
  "verb", ["image", "start", "logs", "status", "resume", "delete"]
)
def test_what_is_printed_is_what_runs(platform, verb):
  platform.make_packable()
  printed = platform.dry("xpk.sh", verb, *FLAGS, *COMMAND)
  run = platform.run("xpk.sh", verb, *FLAGS, *COMMAND)
  assert run.returncode == 0, run.stderr
  ran = platform.calls()
  assert ran == [words for words in printed if words[0] in PROGRAMS] != []
  for words in printed:
    if words[0] == "xpk":
      assert {"--cluster=c", "--zone=z", "--project=p"} < {*words}
      assert {"--workload=r", "--filter-by-job=r"} & {*words}


def test_start_passes_the_command_on_whole(platform):
  (words,) = platform.dry(
    "xpk.sh", "start", *FLAGS, "--num_slices=2", "--extra=--spot", *COMMAND
  )
  assert words[:3] == ["xpk", "workload", "create"]
  assert {
    "--tpu-type=v6e-256",
    "--num-slices=2",
    "--docker-image=i",
    "--max-restarts=10",
    "--restart-on-exit-codes=75,76",
    "--spot",
  } < {*words}
  (command,) = (w for w in words if w.startswith("--command="))
  command = command.removeprefix("--command=")
  assert command.startswith(". launch/env/v6e.sh && . launch/env/dcn.sh && ")
  (platform.bin / "python").write_text(
    '#!/bin/sh\nprintf "%s\\n" "$@" "$LIBTPU_INIT_ARGS"\n'
  )
  (platform.bin / "python").chmod(0o755)
  ran = subprocess.run(  # as xpk has it run in the container
    ["bash", "-c", f"({command}) & wait $!"],
    cwd=platform.root,
    env=platform.env,
    capture_output=True,
    text=True,
    check=True,
  )
  *args, flags = ran.stdout.splitlines()
  assert args == list(COMMAND[2:])
  assert flags.startswith("--xla")


@pytest.mark.parametrize(
  ("given", "asked", "env"),
  [
    ("v4-32", "v4-32", "v4"),
    ("v5p-128", "v5p-128", "v5p"),
    ("v5e-16", "v5litepod-16", "v5e"),
    ("tpu7x-2x2x4", "tpu7x-2x2x4", "tpu7x"),
  ],
)
def test_types_are_known(platform, given, asked, env):
  (words,) = platform.dry(
    "xpk.sh", "start", *FLAGS, f"--type={given}", *COMMAND
  )
  assert f"--tpu-type={asked}" in words
  assert any(w.startswith(f"--command=. launch/env/{env}.sh ") for w in words)


def test_logs_are_of_one_worker(platform):
  (words,) = platform.dry("xpk.sh", "logs", "--name=r", "--worker=3")
  assert words[:2] == ["kubectl", "logs"]
  assert words[-1].endswith(
    "jobset-name=r,batch.kubernetes.io/job-completion-index=3"
  )


def test_resume_deletes_then_starts(platform):
  commands = platform.dry("xpk.sh", "resume", "--extra=--x", *FLAGS, *COMMAND)
  assert [words[2] for words in commands] == ["delete", "create"]
  assert ["--x" in words for words in commands] == [False, True]


def test_resume_starts_though_there_is_nothing_to_delete(platform):
  xpk = platform.bin / "xpk"
  xpk.write_text(
    xpk.read_text() + '\ncase "$*" in *" delete "*) exit 1 ;; esac\n'
  )
  run = platform.run("xpk.sh", "resume", *FLAGS, *COMMAND)
  assert run.returncode == 0, run.stderr
  assert "nothing was deleted" in run.stderr
  assert [words[2] for words in platform.calls()] == ["delete", "create"]


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    ((), "a verb is needed: image, start"),
    (("fly",), "verb 'fly' is unknown, expected image, start"),
    (("status",), "--name is needed"),
    (("status", "--name=r"), "--cluster is needed"),
    (("start", *FLAGS), "what to run is needed"),
    (("start", *FLAGS, "--type=v9-8", "--", "x"), "type 'v9-8' is unknown"),
    (("start", *FLAGS, "--num_slices=0", "--", "x"), "--num_slices is '0'"),
    (("start", *FLAGS, "--", "x\ny"), "the command has a line break"),
    (("image",), "--image is needed"),
    (("start", *FLAGS, "--image=", "--", "x"), "--image is needed"),
  ],
)
def test_refusals(platform, args, sentence):
  assert sentence in platform.says("xpk.sh", *args)
