"""Runs of train that are disturbed, and one that is not."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[3]
STEPS = 16  # of the undisturbed run
# tiny.py with the smallest of nets, for most of a start is tracing it.
CONFIG = """
import runpy
from ml_collections import ConfigDict

def get_config():
  config = runpy.run_path({tiny!r})["get_config"]()
  config.data.update(data_dir={data!r}, cache=False)
  config.stage.net = ConfigDict(dict(
    kind="EfficientUNet", blocks=(dict(channels=8, num_res_blocks=1),),
    embed_dim=8, text_width=16, norm_groups=4, feature_pooling_type="mean",
  ))
  config.train.update(
    steps={steps}, log_every=1, sample_every=1000, num_samples=1,
    checkpoint_every=1, keep_checkpoints=1000,
  )
  return config
"""
# Runs the verb as `python -m imagen_jax.train` does, with parts replaced.
REPLACED = """
import threading, time
import numpy as np
from imagen_jax import train
from imagen_jax.training import batches, log, loop
from imagen_jax.cli import program
{script}
program.run_and_leave(train.main, (0, train.SAVED))
"""
# Of the split that is trained on: records with no caption.
BAD = """
load = batches.load_source
class Source:
  def __init__(self, source):
    self.source = source
  def fingerprint(self):
    return "a stand-in"
  def __len__(self):
    return len(self.source)
  def __getitem__(self, index):
    record = self.source[index]
    return record | dict(caption=b"") if index % {every} == 0 else record
batches.load_source = lambda name, split, folder, **_: (
  Source(load(name, split, folder)) if split == "train"
  else load(name, split, folder))
"""


def heed_interruptions() -> None:
  """As a terminal's programs do; tests in the background begin without."""
  for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


class Run:
  """A process under way, of which the output can be waited for."""

  def __init__(self, command: list[str], output: pathlib.Path, env: dict):
    self._out = output.with_name(f"{output.name}.out")
    self._err = output.with_name(f"{output.name}.err")
    with self._out.open("w") as out, self._err.open("w") as err:
      self.process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=out,
        stderr=err,
        start_new_session=True,
        preexec_fn=heed_interruptions,
      )

  @property
  def out(self) -> str:
    return self._out.read_text()

  @property
  def err(self) -> str:
    return self._err.read_text()

  def until(self, pattern: str, timeout: float = 300) -> None:
    """Waits for a line that has the pattern."""
    self.until_true(lambda: re.search(pattern, self.out, re.M), timeout)

  def until_true(self, found, timeout: float = 300) -> None:
    """Waits until found(); the process must not end before."""
    end = time.monotonic() + timeout
    while True:
      ended = self.process.poll() is not None  # before: it may end in between
      if found():
        return
      assert not ended, (self.out, self.err)
      assert time.monotonic() < end, (self.out, self.err)
      time.sleep(0.01)

  def send(self, number: int) -> None:
    self.process.send_signal(number)

  def end(self, code: int, timeout: float = 300) -> str:
    """Waits for the end, which has this exit code; all that was printed."""
    try:
      self.process.wait(timeout)
    finally:
      self.kill()
    assert self.process.returncode == code, (self.out, self.err)
    return self.out

  def kill(self) -> None:
    """With all that it started."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()


class Training:
  """Starts runs of train, all of one config."""

  def __init__(
    self, here: pathlib.Path, folder: pathlib.Path, state_of, of_two
  ):
    self.folder, self.state, self._of_two = folder, state_of, of_two
    self.config = folder / "config.py"
    self.config.write_text(
      CONFIG.format(
        tiny=str(here / "tiny.py"), data=str(here / "data"), steps=STEPS
      )
    )
    self._count = 0
    self._runs: list[Run] = []

  python, bad = sys.executable, BAD

  def flags(self, workdir, *args: str) -> list[str]:
    return [f"--config={self.config}", f"--workdir={workdir}", *args]

  def start(self, workdir, *args: str, script: str | None = None) -> Run:
    """As a person would, or with parts of it replaced by a script."""
    program = ["-m", "imagen_jax.train"]
    if script is not None:
      program = self.replaced(script)
    return self.run([sys.executable, *program, *self.flags(workdir, *args)])

  @staticmethod
  def replaced(script: str) -> list[str]:
    """Arguments of Python: train with parts of it replaced."""
    return ["-c", REPLACED.format(script=script)]

  def run(self, command: list[str], **env: str) -> Run:
    """Starts a command, on one device as a person has it."""
    self._count += 1
    mine = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    run = Run(command, self.folder / f"run{self._count}", mine | env)
    self._runs.append(run)
    return run

  def run_two(self, command: list[str]) -> list[Run]:
    """Starts it as two processes of a job."""
    return [self.run(command, **env) for env in self._of_two()]

  def kill_all(self) -> None:
    for run in self._runs:
      run.kill()

  @staticmethod
  def steps(workdir: pathlib.Path) -> list[int]:
    """Of the checkpoints."""
    folder = workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())

  def check_same(self, one, other, step: int) -> None:
    """Parameters, EMA, optimizer and counts of two runs are bit-identical."""
    one, other = self.state(one, step), self.state(other, step)
    assert int(one["step"]) == step
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="session")
def training(here, state_of, of_two, tmp_path_factory):
  folder = tmp_path_factory.mktemp("faults")
  training = Training(here, folder, state_of, of_two)
  yield training
  training.kill_all()


@pytest.fixture(scope="session")
def undisturbed(training):
  """The workdir of a run that was left alone; it has a checkpoint of each step.

  So that a run that ends at any of them can be compared with it.
  """
  workdir = training.folder / "undisturbed"
  run = training.start(workdir)
  run.end(0, timeout=300)
  assert run.err == ""
  assert training.steps(workdir) == list(range(1, STEPS + 1))
  return workdir
