"""Two processes of one job, of which one is asked to end, or killed."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import sys

import jax
import numpy as np
import pytest

from imagen_jax.training import lock
from imagen_jax.training.loop import end_sentence

SAVED, STEPS = 75, 6
# Along fsdp, so that each of two devices has a half of the weights alone.
ARGS = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--heartbeat=10")
ARGS += (f"--config.train.steps={STEPS}",)
# All of them with bad records, which each process reports to the others.
ARGS += ("--config.data.max_bad_share=0.5",)
COUNTED = """
gather_host_stats = log.gather_host_stats
def told(numbers, words):
  print("here", numbers[0], numbers[2], flush=True)
  return gather_host_stats(numbers, words)
log.gather_host_stats = told
"""


def command(training, workdir, *args: str) -> list[str]:
  program = training.replaced(training.bad.format(every=5) + COUNTED)
  return [sys.executable, *program, *training.flags(workdir, *ARGS, *args)]


def start_two(training, workdir, *args: str):
  return training.run_two(command(training, workdir, *args))


def start_alone(training, workdir, *args: str):
  alone = command(training, workdir, *args)
  return training.run(alone, JAX_NUM_CPU_DEVICES="2")


def process_of(workdir, index: int) -> int:
  """The pid of a process that launch/local.sh started."""
  for path in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):
      words = (path / "cmdline").read_text().split("\0")
      env = (path / "environ").read_text(errors="replace").split("\0")
      if f"--workdir={workdir}" in words and f"JAX_PROCESS_ID={index}" in env:
        return int(path.name)
  raise AssertionError(f"no process {index} of {workdir}")


@pytest.fixture(scope="module")
def said(training):
  """What two processes printed that were left alone."""
  runs = start_two(training, training.folder / "two")
  return [run.end(0, timeout=240) for run in runs]


@pytest.fixture(scope="module")
def whole(training, said):
  """Their workdir."""
  workdir = training.folder / "two"
  assert training.steps(workdir) == list(range(1, STEPS + 1))
  return workdir


def test_bad_records_of_both_are_counted_and_told_of(whole, said):
  found = [re.findall(r"^here (\d+) (\d+)$", out, re.M) for out in said]
  both = [np.array(of, int) for of in found]
  bad, read = np.sum(both, axis=0).T.tolist()
  lines = (whole / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["bad_records"] for line in lines] == bad
  assert min(of[-1, 0] for of in both) > 0  # each has some
  last = f"{bad[-1]} of {read[-1]} records read are bad, a share of "
  (sentence,) = [x for x in said[0].splitlines() if x.startswith(last)]
  assert sentence.count(": caption is empty") > 1
  assert "are bad" not in said[1]


def take(workdir, step: int, to) -> None:
  """One checkpoint of a run, to resume from."""
  name = f"checkpoints/{step}"
  shutil.copytree(workdir / name, to / name)


@pytest.mark.parametrize("told", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_is_told_and_both_save(training, whole, tmp_path, told):
  runs = start_two(training, tmp_path, "--config.train.steps=16")
  runs[0].until("train 1/")
  runs[told].send(signal.SIGTERM)
  out, _ = (run.end(SAVED) for run in runs)
  step = training.steps(tmp_path)[-1]
  said = end_sentence(step, str(tmp_path), interrupted=True)
  assert out.splitlines()[-1] == said
  assert step < 16
  if step <= STEPS:
    training.check_same(tmp_path, whole, step)


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.slow
def test_one_is_killed_and_the_other_ends(training, tmp_path, killed):
  runs = start_two(training, tmp_path, "--config.train.steps=100")
  runs[0].until("train 2/")
  runs[killed].send(signal.SIGKILL)
  left = runs[1 - killed].process
  left.wait(timeout=90)  # less than the heartbeat is by default
  assert left.returncode in (76, -signal.SIGABRT)  # what xpk.sh starts again
  assert runs[1 - killed].err


@pytest.mark.slow
def test_one_is_killed_and_both_are_started_again(training, whole, tmp_path):
  launch = ["launch/local.sh", "2", "--restarts=2", "--"]
  run = training.run(launch + command(training, tmp_path))
  run.until_true(lambda: training.steps(tmp_path))  # one is safe
  os.kill(process_of(tmp_path, 1), signal.SIGKILL)
  out = run.end(0, timeout=240)
  assert "starting all again, restart 1 of 2." in run.err
  assert "restart 2" not in run.err
  assert re.search(r"^\[0\] resumed from step [1-5]$", out, re.M), out
  training.check_same(tmp_path, whole, STEPS)


@pytest.mark.slow
def test_another_config_is_refused_by_both(training, whole, tmp_path):
  take(whole, 3, tmp_path)
  runs = start_two(training, tmp_path, "--config.optimizer.clip_norm=0.5")
  for run in runs:
    run.end(1)
    said = [line for line in run.err.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "optimizer.clip_norm" in said[0], run.err
  assert training.steps(tmp_path) == [3]


@pytest.mark.slow
def test_a_workdir_that_is_held_is_refused_by_both(training, tmp_path):
  with lock.one_writer(str(tmp_path), print):
    for run in start_two(training, tmp_path):
      run.end(1)
      said = [x for x in run.err.splitlines() if x.startswith("error:")]
      held = f"error: workdir {tmp_path} is held by process {os.getpid()} of "
      assert len(said) == 1 and said[0].startswith(held), run.err
    assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]


def check_close(training, one, other) -> None:
  states = [training.state(workdir, STEPS) for workdir in (one, other)]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), *states
  )


@pytest.mark.slow
def test_what_one_process_began_two_go_on_with(training, whole, tmp_path):
  start_alone(training, tmp_path, "--config.train.steps=3").end(0)
  runs = start_two(training, tmp_path)
  out, _ = (run.end(0) for run in runs)
  assert "resumed from step 3\n" in out
  check_close(training, whole, tmp_path)


@pytest.mark.slow
def test_what_two_processes_began_one_goes_on_with(training, whole, tmp_path):
  take(whole, 3, tmp_path)
  run = start_alone(training, tmp_path)
  assert "resumed from step 3\n" in run.end(0)
  check_close(training, whole, tmp_path)


# Both allocate more than there is, as if they compiled too large a step.
TOO_MUCH = """
import jax.numpy as jnp
import jax
alloc = jax.jit(lambda x: jnp.full(2**48, x) * 2)
loop.compile_step = lambda *args: jax.block_until_ready(alloc(1.0))
"""


@pytest.mark.slow
def test_two_that_run_out_of_memory_do_not_blame_each_other(training, tmp_path):
  program = training.replaced(TOO_MUCH)
  command = [sys.executable, *program, *training.flags(tmp_path, *ARGS)]
  for run in training.run_two(command):
    run.end(1, timeout=240)
    assert "error: out of device memory: 1048576.00 GiB could" in run.err


# So that steps, which are long on a busy machine, do not decide.
HANGS = """
from imagen_jax.training import watchdog
watchdog.STEPS = 0
"""


@pytest.mark.slow
def test_one_hangs_and_both_are_started_again(training, whole, tmp_path):
  """By SIGSTOP: it lives, so that no heartbeat is missing for long."""
  program = training.replaced(training.bad.format(every=5) + COUNTED + HANGS)
  launch = ["launch/local.sh", "2", "--restarts=1", "--", sys.executable]
  flags = training.flags(
    tmp_path, *ARGS, "--heartbeat=3000", "--config.data.patience=30",
    "--config.train.hang_after=10",
  )  # fmt: skip
  run = training.run([*launch, *program, *flags])
  run.until_true(lambda: training.steps(tmp_path))
  os.kill(process_of(tmp_path, 1), signal.SIGSTOP)
  out = run.end(0, timeout=600)
  said = out + run.err
  assert "error: no step ended for 40 s: a device, a store or" in said
  assert re.search(r"^\[0\] Thread MainThread:", said, re.M)
  assert "exit code 76, ending the others." in run.err
  assert re.search(r"^\[0\] resumed from step [1-5]$", out, re.M), out
  training.check_same(tmp_path, whole, STEPS)
