"""The verb embed in several processes, killed ones and those of one job."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def arguments(here, output, *more):
  return [f"--config={here}/tiny.py", f"--output={output}", *more]


def contents(folder):
  """The checksums of a folder's files, hidden ones too."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.iterdir())
  }


def process(args, **variables):
  env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
  return subprocess.Popen(
    [sys.executable, "-m", "imagen_jax.embed", *args],
    cwd=ROOT, env=env | variables, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip


@pytest.mark.slow
def test_kill_9_loses_at_most_a_shard(here, tmp_path):
  """At several moments; the bytes at the end are those of a run in peace."""
  args = lambda name: arguments(here, tmp_path / name, "--per_shard=3")
  assert process(args("peace")).wait() == 0
  for wanted in (1, 4, 9):
    running = process(args("killed"))
    keys = lambda: [*(tmp_path / "killed").glob("*.keys-*")]
    while len(keys()) < wanted and running.poll() is None:
      time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
  before = len(keys())
  assert before >= 9
  running = process(args("killed"))
  said, _ = running.communicate()
  assert running.returncode == 0, said
  left = 80 - 3 * before
  assert f"embedded {max(0, left)} captions" in said or left < 6
  assert contents(tmp_path / "killed") == contents(tmp_path / "peace")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(here, tmp_path, of_two):
  """Of one JAX job, without --shard."""
  args = lambda name: arguments(here, tmp_path / name, "--per_shard=9")
  assert process(args("one")).wait() == 0
  both = [process(args("two"), **variables) for variables in of_two()]
  for each in both:
    said, _ = each.communicate()
    assert each.returncode == 0, said
  assert contents(tmp_path / "two") == contents(tmp_path / "one")
