"""launch/slurm.sh, and its job with pretended SLURM commands."""

import os
import shlex
import signal
import subprocess
import time

import pytest

WAIT = "while :; do sleep 0.1; done"
COMMAND = ("--", "python", "-m", "x", "--config=it's a.py", "--w=$HOME")
# srun as one process, and scancel that signals it.
SRUN = """#!/bin/sh
{{ printf '%s\\0' srun "$@"; printf '\\n\\0'; }} >> {calls}
echo $$ > {calls}.srun
while [ "$1" != sh ]; do shift; done
exec "$@"
"""
SCANCEL = """#!/bin/sh
{{ printf '%s\\0' scancel "$@"; printf '\\n\\0'; }} >> {calls}
kill -TERM $(cat {calls}.srun)
"""


def test_what_is_printed_is_submitted(platform):
  args = ("--name=n", "--nodes=2", "--gpus_per_node=4", "--time=1:00:00")
  args += ("--partition=p", "--account=a", "--extra=--exclusive", *COMMAND)
  printed = platform.dry("slurm.sh", *args)
  assert platform.run("slurm.sh", *args).returncode == 0
  assert platform.calls() == printed
  (words,) = printed
  assert {
    "--job-name=n",
    "--nodes=2",
    "--ntasks-per-node=4",
    "--gpus-per-node=4",
    "--cpus-per-task=8",
    "--time=1:00:00",
    "--partition=p",
    "--account=a",
    "--exclusive",
  } < {*words}
  assert words[-7:] == ["launch/slurm.sbatch", "gpu", *COMMAND[1:]]


def test_defaults_leave_the_rest_to_the_cluster(platform):
  (words,) = platform.dry("slurm.sh", "--", "x")
  assert not any(w.startswith(("--time", "--part", "--acc")) for w in words)


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    ((), "what to run is needed"),
    (("python",), "argument 'python' is unexpected"),
    (("--nodes=two", "--", "x"), "--nodes is 'two', expected a number"),
    (("--gpus_per_node=0", "--", "x"), "--gpus_per_node is '0'"),
    (("--name=", "--", "x"), "--name is needed"),
    (("--env=a100", "--", "x"), "there is no launch/env/a100.sh"),
  ],
)
def test_refusals(platform, args, sentence):
  assert sentence in platform.says("slurm.sh", *args)


@pytest.fixture
def job(platform):
  """Starts the job's script as SLURM would, with a command."""
  platform.pretend("srun", SRUN)
  platform.pretend("scancel", SCANCEL)
  env = dict(
    SLURM_JOB_ID="7",
    SLURM_CPUS_PER_TASK="3",
    SLURM_SUBMIT_DIR=str(platform.root),
  )

  def start(*command):
    return subprocess.Popen(
      ["bash", platform.root / "launch" / "slurm.sbatch", "gpu", *command],
      env=platform.env | env,
      stdout=subprocess.PIPE,
      text=True,
    )

  return start


def test_the_job_runs_one_process_per_gpu(platform, job):
  script = 'printf "<%s>\\n" "$@" "$XLA_FLAGS"; exit 3'
  process = job("sh", "-c", script, "0", "it's a", "$HOME")
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 3
  assert out.startswith("<it's a>\n<$HOME>\n<--xla_gpu")
  ((srun, *words),) = platform.calls()
  assert srun == "srun"
  assert {"--label", "--cpus-per-task=3", "--kill-on-bad-exit=0"} < {*words}


def when_late(platform):
  """The file at which the four minutes are over."""
  path, late = platform.root / "launch" / "slurm.sbatch", platform.bin / "late"
  waiting = f"until [ -e {shlex.quote(str(late))} ]; do sleep 0.1; done"
  path.write_text(path.read_text().replace("sleep 240", f"{{ {waiting}; }}"))
  return late


@pytest.mark.parametrize("sent", ["out of time", "preempted"])
def test_the_job_waits_for_processes_that_save(platform, job, sent):
  late = when_late(platform)
  script = f"trap 'sleep 0.5; echo saved; exit 9' TERM; echo up; {WAIT}"
  process = job("sh", "-c", script)
  assert process.stdout.readline() == "up\n"
  if sent == "out of time":
    process.send_signal(signal.SIGUSR1)
  else:  # SLURM signals all
    process.send_signal(signal.SIGTERM)
    subprocess.run([platform.bin / "scancel"], check=True)
  out, _ = process.communicate(timeout=300)
  assert out == "saved\n"
  assert process.returncode == 9
  if sent == "out of time":
    late.touch()
    time.sleep(0.5)  # what would happen then does not
    assert platform.calls()[1:] == [
      ["scancel", "--signal=TERM", "7"],
      ["scontrol", "requeue", "7"],
    ]
  else:
    assert platform.calls()[1:] == [["scancel"]]  # SLURM itself requeues it


def test_the_job_requeues_even_if_its_processes_go_on(platform, job):
  late = when_late(platform)
  process = job("sh", "-c", "trap '' TERM; echo up; exec sleep 3600")
  assert process.stdout.readline() == "up\n"
  process.send_signal(signal.SIGUSR1)
  late.touch()
  requeued = lambda: any(words[0] == "scontrol" for words in platform.calls())
  platform.until(requeued)
  assert process.poll() is None
  pid = int(platform.calls_path.with_suffix(".srun").read_text())
  os.kill(pid, signal.SIGKILL)
  process.communicate(timeout=300)


def test_the_job_says_when_it_wants_to_be_told(platform):
  text = (platform.root / "launch" / "slurm.sbatch").read_text()
  for line in ("--signal=B:USR1@300", "--requeue", "--open-mode=append"):
    assert f"\n#SBATCH {line}\n" in text
