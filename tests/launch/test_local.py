"""launch/local.sh, with real processes."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import pytest

# Forms the job as a verb would from the variables, and gathers.
PROGRAM = """
import os, sys
import jax
import numpy as np

index = int(os.environ["JAX_PROCESS_ID"])
jax.distributed.initialize(
  os.environ["JAX_COORDINATOR_ADDRESS"],
  int(os.environ["JAX_NUM_PROCESSES"]),
  index,
  initialization_timeout=300,
)
from jax.experimental import multihost_utils

# Where the coordinator listens, as Linux has it: state 0A is LISTEN.
port = int(os.environ["JAX_COORDINATOR_ADDRESS"].rpartition(":")[2])
for name in ("tcp", "tcp6"):
  for line in open("/proc/net/" + name).read().splitlines()[1:]:
    local, _, state = line.split()[1:4]
    if state == "0A" and int(local.rpartition(":")[2], 16) == port:
      print("listens on", local.rpartition(":")[0])

mine = np.array([10 + index])
print("gathered", multihost_utils.process_allgather(mine).ravel(), sys.argv[1:])
"""
# The second process fails, the first waits for it, or for SIGTERM, in vain.
WAIT = "while :; do sleep 0.1; done"
READY = "until [ -s ready ]; do sleep 0.1; done"
FAILING = f"""
if [ $JAX_PROCESS_ID = 1 ]; then {READY}; echo the reason >&2; exit 7; fi
trap 'echo asked; exit 0' TERM
echo > ready
{WAIT}
"""
DEAF = f"""
if [ $JAX_PROCESS_ID = 1 ]; then {READY}; exit 7; fi
trap '' TERM
echo $$ > ready; sleep 3600
"""
SAVING = f"trap 'sleep 0.3; echo saved; exit 0' TERM; echo up; {WAIT}"


def gone(pid: int) -> bool:
  """Whether a process has ended."""
  try:
    os.kill(pid, 0)
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
  except (ProcessLookupError, FileNotFoundError):
    return True


def test_two_processes_form_one_jax_job(platform, tmp_path):
  program = tmp_path / "program.py"
  program.write_text(PROGRAM)
  command = (sys.executable, str(program), "it's a", "$HOME")
  run = platform.run("local.sh", "2", "--", *command)
  assert run.returncode == 0, run.stderr
  places = set(re.findall("listens on (.+)", run.stdout))
  loopback = {"0100007F", "00000000000000000000000001000000"}
  loopback.add("0000000000000000FFFF00000100007F")  # of IPv4, by IPv6
  assert places and places <= loopback, run.stdout
  for i in (0, 1):
    assert f"[{i}] gathered [10 11] [\"it's a\", '$HOME']" in run.stdout


def test_what_is_printed_is_what_runs(platform):
  args = ("3", "--port=1234", "--env=gpu")
  command = ("--", "it's", "$HOME", "")
  sourced, *printed = platform.dry("local.sh", *args, *command)
  assert sourced == [".", str(platform.root / "launch" / "env" / "gpu.sh")]
  for i, words in enumerate(printed):
    assert words == [
      "env",
      "JAX_COORDINATOR_ADDRESS=localhost:1234",
      "JAX_COORDINATOR_BIND_ADDRESS=localhost:1234",
      "JAX_NUM_PROCESSES=3",
      f"JAX_PROCESS_ID={i}",
      *command[1:],
    ]
  show = 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"'
  run = platform.run("local.sh", *args, "--", "sh", "-c", f"{show} $XLA_FLAGS")
  assert sorted(line[:22] for line in run.stdout.splitlines()) == [
    f"[{i}] localhost:1234 3 {i}" for i in range(3)
  ]
  assert run.stdout.count("--xla_gpu") == 3


def test_a_free_port_is_found(platform):
  found = {
    platform.dry("local.sh", "1", "--", "x")[0][1].partition(":")[2]
    for _ in range(2)
  }
  assert len(found) == 2
  assert all(1024 <= int(port) < 65536 for port in found)


def test_the_python_is_that_of_the_environment(platform):
  python = platform.root / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text("#!/bin/sh\necho ours $PWD\n")
  python.chmod(0o755)
  run = platform.run("local.sh", "1", "--", "python")
  assert run.stdout == f"[0] ours {platform.bin}\n"  # and the folder, yours


def test_a_failure_ends_the_others(platform):
  # One that is not ended waits for ever.
  run = platform.run("local.sh", "2", "--", "sh", "-c", FAILING)
  assert run.returncode == 7
  assert "[1] the reason\n" in run.stdout
  assert "[0] asked\n" in run.stdout
  assert "process 1 ended with exit code 7, ending the others." in run.stderr
  assert re.search(r"process 1 was first to fail, exit code 7.\n$", run.stderr)


def test_every_line_is_shown_before_the_end(platform, tmp_path):
  script = shlex.quote(str(platform.root / "launch" / "local.sh"))
  many = "yes '' | head -n 60000; printf last"  # a pipe full of short lines
  shown = tmp_path / "shown"
  with shown.open("w") as file:
    subprocess.run(
      ["bash", "-c", f'{script} 1 -- sh -c "{many}"'],
      env=platform.env,
      stdout=file,
      check=True,
    )
  lines = shown.read_text().splitlines()
  assert len(lines) == 60001
  assert lines[-1] == "[0] last"


def test_who_does_not_end_is_killed(platform):
  run = platform.run("local.sh", "2", "--grace=1", "--", "sh", "-c", DEAF)
  assert run.returncode == 7
  assert run.stderr.count("\n") == 2, run.stderr  # nothing of bash's own
  pid = int((platform.bin / "ready").read_text())
  platform.until(lambda: gone(pid))


def test_a_command_that_does_not_exist(platform):
  run = platform.run("local.sh", "2", "--", "no_such_command")
  assert run.returncode == 127
  assert "no_such_command" in run.stdout


@pytest.mark.parametrize(
  ("sent", "code"),
  [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_an_interruption_ends_all(platform, sent, code):
  process = platform.start(
    "local.sh", "2", "--grace=200", "--", "sh", "-c", SAVING
  )
  assert {process.stdout.readline() for _ in "01"} == {"[0] up\n", "[1] up\n"}
  os.killpg(process.pid, sent)  # as a terminal does
  out, err = process.communicate(timeout=300)
  assert process.returncode == code
  assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]
  assert err == ""


def test_a_second_interruption_does_not_wait(platform):
  script = f"trap 'echo asked' TERM; echo up; {WAIT}"
  process = platform.start(
    "local.sh", "1", "--grace=3600", "--", "sh", "-c", script
  )
  assert process.stdout.readline() == "[0] up\n"
  os.killpg(process.pid, signal.SIGINT)
  assert process.stdout.readline() == "[0] asked\n"
  assert process.poll() is None
  os.killpg(process.pid, signal.SIGINT)
  process.communicate(timeout=300)
  assert process.returncode == 130


# Ends badly until it has been started so often; the first waits for that.
RESTARTING = """
echo >> starts.$JAX_PROCESS_ID
[ $(wc -l < starts.$JAX_PROCESS_ID) -ge {good} ] && exit 0
[ $JAX_PROCESS_ID = 0 ] && exec sleep 3600
exit {code}
"""


def restarted(platform, *args: str, good: int, code: int):
  """A run, and how often each of its two processes was started."""
  script = RESTARTING.format(good=good, code=code)
  run = platform.run("local.sh", "2", *args, "--", "sh", "-c", script)
  starts = [platform.bin / f"starts.{i}" for i in (0, 1)]
  return run, [path.read_text().count("\n") for path in starts]


def test_all_are_started_again(platform):
  run, starts = restarted(platform, "--restarts=3", good=3, code=9)
  assert (run.returncode, starts) == (0, [3, 3])
  failure = "launch/local.sh: process 1 ended with exit code 9, ending the "
  assert run.stderr.splitlines() == [
    f"{failure}others.",
    "launch/local.sh: starting all again, restart 1 of 3.",
    f"{failure}others.",
    "launch/local.sh: starting all again, restart 2 of 3.",
  ]


@pytest.mark.parametrize(
  ("args", "code", "count"),
  [((), 9, 1), (("--restarts=2",), 9, 3)]
  + [(("--restarts=2",), code, 1) for code in (1, 2, 75)],
)
def test_not_for_ever_and_not_what_was_asked_to_end(
  platform, args, code, count
):
  run, starts = restarted(platform, *args, good=9, code=code)
  assert (run.returncode, starts) == (code, [count, count])
  assert run.stderr.count("starting all again") == count - 1
  end = f"process 1 was first to fail, exit code {code}.\n"
  assert run.stderr.endswith(end)


def test_an_interruption_is_no_failure(platform):
  process = platform.start(
    "local.sh", "2", "--restarts=2", "--grace=200", "--", "sh", "-c", SAVING
  )
  assert {process.stdout.readline() for _ in "01"} == {"[0] up\n", "[1] up\n"}
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 143
  assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]
  assert err == ""


def test_every_start_has_a_port_of_its_own(platform):
  script = "echo $JAX_COORDINATOR_ADDRESS; exit 9"
  args = ("--restarts=1", "--", "sh", "-c", script)
  found = platform.run("local.sh", "1", *args).stdout.split("\n")[:-1]
  assert len(set(found)) == 2
  found = platform.run("local.sh", "1", "--port=1234", *args).stdout
  assert found == "[0] localhost:1234\n" * 2


def test_what_a_process_leaves_behind_is_ended(platform, tmp_path):
  script = f"sleep 3600 & echo $! > {tmp_path / 'pid'}"
  run = platform.run("local.sh", "1", "--", "sh", "-c", script)
  assert run.returncode == 0
  pid = int((tmp_path / "pid").read_text())
  platform.until(lambda: gone(pid))


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    ((), "the first argument is '', expected how many"),
    (("0", "--", "x"), "the first argument is '0'"),
    (("two", "--", "x"), "the first argument is 'two'"),
    (("2",), "what to run is needed"),
    (("2", "x"), "argument 'x' is unexpected"),
    (("2", "--grace=soon", "--", "x"), "--grace is 'soon', expected a number"),
    (("2", "--port=http", "--", "x"), "--port is 'http', expected a number"),
    (("2", "--restarts=0", "--", "x"), "--restarts is '0', expected a number"),
    (("2", "--env=v9", "--", "x"), "there is no launch/env/v9.sh"),
  ],
)
def test_refusals(platform, args, sentence):
  assert sentence in platform.says("local.sh", *args)
