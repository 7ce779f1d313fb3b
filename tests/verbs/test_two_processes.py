"""Two processes on localhost are one job: they train, save, sample, resume.

With a net like the real ones; faults/test_job_faults.py has a quick one.
"""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
ENV = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
STEPS = 4
# Along fsdp, so that each of two devices has a half of the weights alone.
ARGS = ("--config.mesh.data=1", "--config.mesh.fsdp=2")


def free_port() -> int:
  with contextlib.closing(socket.socket()) as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def start(here, workdir, steps: int, **env: str) -> subprocess.Popen:
  command = [sys.executable, "-m", "imagen_jax.train"]
  command += [f"--config={here}/tiny.py", f"--workdir={workdir}", *ARGS]
  command += [f"--config.train.steps={steps}", "--config.train.sample_every=2"]
  pipe = subprocess.PIPE
  return subprocess.Popen(
    command, cwd=ROOT, env=ENV | env, stdout=pipe, stderr=pipe, encoding="utf-8"
  )


def in_two(here, workdir, steps: int) -> list[tuple[str, str]]:
  """Trains in two processes of one device each; what both printed."""
  env = {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    "JAX_NUM_PROCESSES": "2",
  }
  processes = [
    start(here, workdir, steps, **env, JAX_PROCESS_ID=str(i)) for i in range(2)
  ]
  said = [process.communicate() for process in processes]
  assert [p.returncode for p in processes] == [0, 0], said
  return said


@pytest.fixture(scope="module")
def alone(here):
  """The run of one process with two devices."""
  workdir = here / "alone"
  process = start(here, workdir, STEPS, JAX_NUM_CPU_DEVICES="2")
  _, err = process.communicate()
  assert process.returncode == 0, err
  return workdir


@pytest.fixture(scope="module")
def together(here):
  """(workdir, what was printed) of two processes, stopped half way."""
  workdir = here / "together"
  return workdir, [*in_two(here, workdir, 2), *in_two(here, workdir, STEPS)]


def test_two_processes_are_one(alone, together, state_of):
  workdir, _ = together
  one, two = state_of(alone, STEPS), state_of(workdir, STEPS)
  assert jax.tree.structure(one) == jax.tree.structure(two)
  assert int(two["step"]) == STEPS
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one, two
  )


def test_they_sample_the_same_pictures(alone, together):
  workdir, _ = together
  names = sorted(path.name for path in (alone / "samples").iterdir())
  assert names == sorted(p.name for p in (workdir / "samples").iterdir())
  assert len(names) == STEPS // 2
  for name in names:
    with Image.open(alone / "samples" / name) as image:
      one = np.asarray(image).astype(int)
    with Image.open(workdir / "samples" / name) as image:
      two = np.asarray(image).astype(int)
    assert np.abs(one - two).max() <= 1


def test_one_of_them_speaks(together):
  _, said = together
  first, second, *resumed = [out for out, _ in said]
  assert "parameters on 2 device(s)" in first
  assert "resumed from step 2" in resumed[0]
  for silent in (second, resumed[1]):  # but for what carries the messages
    lines = silent.splitlines()
    assert [line for line in lines if not line.startswith("[Gloo]")] == []
