"""Two processes on localhost are one job: they train, save, sample, resume.

With a net like the real ones; faults/test_job_faults.py has a quick one.
"""

import os
import pathlib
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


def start(args: list[str], **env: str) -> subprocess.Popen:
  command, pipe = [sys.executable, "-m", *args], subprocess.PIPE
  return subprocess.Popen(
    command, cwd=ROOT, env=ENV | env, stdout=pipe, stderr=pipe, encoding="utf-8"
  )


def start_alone(args: list[str]) -> list[subprocess.Popen]:
  """A verb in one process of two devices."""
  return [start(args, JAX_NUM_CPU_DEVICES="2")]


@pytest.fixture(scope="module")
def start_two(of_two):
  """The same in two processes of one device each."""
  return lambda args: [start(args, **env) for env in of_two()]


def ended(processes: list[subprocess.Popen]) -> list[tuple[str, str]]:
  """Waits for processes, which end well; what each printed."""
  said = [process.communicate() for process in processes]
  assert not any(p.returncode for p in processes), said
  return said


def training(here, workdir, steps: int) -> list[str]:
  args = ["imagen_jax.train", f"--config={here}/tiny.py", *ARGS]
  args += [f"--workdir={workdir}", f"--config.train.steps={steps}"]
  return [*args, "--config.train.sample_every=2"]


@pytest.fixture(scope="module")
def alone(here):
  """The run of one process with two devices."""
  workdir = here / "alone"
  ended(start_alone(training(here, workdir, STEPS)))
  return workdir


@pytest.fixture(scope="module")
def together(here, start_two):
  """(workdir, what was printed) of two processes, stopped half way."""
  workdir = here / "together"
  halves = [ended(start_two(training(here, workdir, n))) for n in (2, STEPS)]
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
  names = check_same_pictures(alone / "samples", workdir / "samples")
  assert len(names) == STEPS // 2


def check_same_pictures(one, two) -> list[str]:
  """Two folders have pictures of the same names, equal but for rounding."""
  names = sorted(path.name for path in one.iterdir())
  assert names == sorted(path.name for path in two.iterdir())
  for name in names:
    with Image.open(one / name) as image:
      a = np.asarray(image).astype(int)
    with Image.open(two / name) as image:
      b = np.asarray(image).astype(int)
    assert np.abs(a - b).max() <= 1
    assert len(np.unique(a)) > 9  # a picture
  return names


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
def test_two_sample_a_cascade(config, start_two, tmp_path, axis, batch):
  path = tmp_path / "meshed.py"
  path.write_text(MESHED.format(tiny=str(config), axis=axis, batch=batch))
  args = ["imagen_jax.sample", f"--config={path}", "--num_images=3"]
  args += ["--prompt=a red star", "--seed=5"]
  ended(start_alone([*args, f"--outdir={tmp_path}/one"]))
  two = ended(start_two([*args, f"--outdir={tmp_path}/two"]))
  (out, _), (silent, _) = two
  check_silent(silent)
  names = check_same_pictures(tmp_path / "one", tmp_path / "two")
  assert len(names) == 4  # and the grid
  for name in names:
    assert out.count(f"{tmp_path}/two/{name}\n") == 1


def test_two_need_a_mesh_to_sample(config, start_two, tmp_path):
  args = ["imagen_jax.sample", f"--config={config}", "--prompt=a"]
  args += [f"--outdir={tmp_path}/none"]
  two = start_two(args)
  said = [process.communicate()[1] for process in two]
  assert two[0].returncode == 1
  assert two[1].returncode != 0  # or the first is gone before it says so
  expected = "error: the config has no mesh, expected one of all processes\n"
  assert said[0].endswith(expected)
  assert not (tmp_path / "none").exists()
