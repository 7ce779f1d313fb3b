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
MESHED = """
import runpy

def get_config():
  config = runpy.run_path({tiny!r})["get_config"]()
  config.mesh = dict(data=1, {axis}=2)
  config.batch_size = {batch}
  return config
"""


def free_port() -> int:
  with contextlib.closing(socket.socket()) as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def start(args: list[str], **env: str) -> subprocess.Popen:
  command, pipe = [sys.executable, "-m", *args], subprocess.PIPE
  return subprocess.Popen(
    command, cwd=ROOT, env=ENV | env, stdout=pipe, stderr=pipe, encoding="utf-8"
  )


def in_one(args: list[str]) -> None:
  """Runs a verb in one process of two devices."""
  process = start(args, JAX_NUM_CPU_DEVICES="2")
  _, err = process.communicate()
  assert process.returncode == 0, err


def in_two(args: list[str]) -> list[tuple[str, str]]:
  """Runs a verb in two processes of one device each; what both printed."""
  env = {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    "JAX_NUM_PROCESSES": "2",
  }
  processes = [start(args, **env, JAX_PROCESS_ID=str(i)) for i in range(2)]
  said = [process.communicate() for process in processes]
  assert [p.returncode for p in processes] == [0, 0], said
  return said


def training(here, workdir, steps: int) -> list[str]:
  args = ["imagen_jax.train", f"--config={here}/tiny.py", *ARGS]
  args += [f"--workdir={workdir}", f"--config.train.steps={steps}"]
  return [*args, "--config.train.sample_every=2"]


@pytest.fixture(scope="module")
def alone(here):
  """The run of one process with two devices."""
  workdir = here / "alone"
  in_one(training(here, workdir, STEPS))
  return workdir


@pytest.fixture(scope="module")
def together(here):
  """(workdir, what was printed) of two processes, stopped half way."""
  workdir = here / "together"
  halves = [in_two(training(here, workdir, n)) for n in (2, STEPS)]
  return workdir, [*halves[0], *halves[1]]


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
  for silent in (second, resumed[1]):
    check_silent(silent)


def check_silent(out: str) -> None:
  """Nothing printed, but by what carries the messages."""
  lines = out.splitlines()
  assert [line for line in lines if not line.startswith("[Gloo]")] == []


# Three pictures are two batches, and no number of rows for two devices.
@pytest.mark.parametrize("axis,batch", [("fsdp", 2), ("tensor", 3)])
def test_two_sample_a_cascade(config, tmp_path, axis, batch):
  path = tmp_path / "meshed.py"
  path.write_text(MESHED.format(tiny=str(config), axis=axis, batch=batch))
  args = ["imagen_jax.sample", f"--config={path}", "--num_images=3"]
  args += ["--prompt=a red star", "--seed=5"]
  in_one([*args, f"--outdir={tmp_path}/one"])
  (out, _), (silent, _) = in_two([*args, f"--outdir={tmp_path}/two"])
  check_silent(silent)
  one = sorted(path.name for path in (tmp_path / "one").iterdir())
  assert one == sorted(path.name for path in (tmp_path / "two").iterdir())
  assert len(one) == 4  # and the grid
  for name in one:
    assert out.count(f"{tmp_path}/two/{name}\n") == 1
    with Image.open(tmp_path / "one" / name) as image:
      alone = np.asarray(image).astype(int)
    with Image.open(tmp_path / "two" / name) as image:
      together = np.asarray(image).astype(int)
    assert np.abs(alone - together).max() <= 1
    assert len(np.unique(alone)) > 9  # a picture


def test_two_need_a_mesh_to_sample(config, tmp_path):
  env = {
    "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    "JAX_NUM_PROCESSES": "2",
  }
  args = ["imagen_jax.sample", f"--config={config}", "--prompt=a"]
  args += [f"--outdir={tmp_path}/none"]
  two = [start(args, **env, JAX_PROCESS_ID=str(i)) for i in range(2)]
  said = [process.communicate()[1] for process in two]
  assert two[0].returncode == 1
  assert two[1].returncode != 0  # or the first is gone before it says so
  expected = "error: the config has no mesh, expected one of all processes\n"
  assert said[0].endswith(expected)
  assert not (tmp_path / "none").exists()
