"""Two processes on localhost are one job: they train, save, sample, resume.

With a net like the real ones; faults/test_job_faults.py has a quick one.
"""

import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax.interop.inception import params_like
from imagen_jax.interop.weights import save_weights

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
write_clip = runpy.run_path(str(ROOT / "tests/evals/clip_folder.py"))[
  "write_clip"
]
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
  both = lambda args: [start(args, **env) for env in of_two()]
  both.variables = of_two
  return both


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
def raise_together(here, start_two):
  """(workdir, what was printed) of two processes, stopped half way."""
  workdir = here / "together"
  halves = [ended(start_two(training(here, workdir, n))) for n in (2, STEPS)]
  return workdir, [*halves[0], *halves[1]]


def test_two_processes_are_one(alone, raise_together, state_of):
  workdir, _ = raise_together
  one, two = state_of(alone, STEPS), state_of(workdir, STEPS)
  assert jax.tree.structure(one) == jax.tree.structure(two)
  assert int(two["step"]) == STEPS
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one, two
  )


def test_they_sample_the_same_pictures(alone, raise_together):
  workdir, _ = raise_together
  names = check_same_pictures(alone / "samples", workdir / "samples")
  assert len(names) == STEPS // 2


def check_same_pictures(one, two) -> list[str]:
  """Two folders have images of the same names, equal but for rounding."""
  names = sorted(path.name for path in one.iterdir())
  assert names == sorted(path.name for path in two.iterdir())
  for name in names:
    with Image.open(one / name) as image:
      a = np.asarray(image).astype(int)
    with Image.open(two / name) as image:
      b = np.asarray(image).astype(int)
    assert np.abs(a - b).max() <= 1
    assert len(np.unique(a)) > 9  # an image
  return names


def test_one_of_them_speaks(raise_together):
  _, said = raise_together
  first, second, *resumed = [out for out, _ in said]
  assert "parameters on 2 device(s)" in first
  assert "resumed from step 2" in resumed[0]
  for silent in (second, resumed[1]):
    check_silent(silent)


def check_silent(out: str) -> None:
  """Nothing printed, but by what carries the messages."""
  lines = out.splitlines()
  assert [line for line in lines if not line.startswith("[Gloo]")] == []


# Three images are two batches, and no number of rows for two devices.
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


def test_two_write_their_own_images_and_resume(config, start_two, tmp_path):
  """Also after one of them was killed, which loses what was in flight."""
  path, outdir = tmp_path / "meshed.py", tmp_path / "out"
  path.write_text(MESHED.format(tiny=str(config), axis="fsdp", batch=2))
  args = ["imagen_jax.sample", f"--config={path}", "--num_images=60"]
  args += ["--prompt=a red star", f"--outdir={outdir}", "--heartbeat=10"]
  two = start_two(args)
  deadline = time.monotonic() + 120
  while len(list(outdir.glob("*.png"))) < 6 and time.monotonic() < deadline:
    time.sleep(0.05)
  two[1].kill()
  two[0].communicate()
  assert two[0].returncode not in (0, 1)
  two[1].communicate()
  times = {p: p.stat().st_mtime_ns for p in outdir.glob("a_red_star-*.png")}
  assert 6 <= len(times) < 60
  (out, _), (silent, _) = ended(start_two(args))
  check_silent(silent)
  assert f"{len(times)} of 60 image(s) are finished" in out
  assert f"{60 - len(times)} image(s) at " in out
  assert len(list(outdir.glob("a_red_star-*.png"))) == 60
  assert {path: path.stat().st_mtime_ns for path in times} == times
  assert {p.suffix for p in outdir.iterdir()} <= {".png", ".part"}
  assert len(list(outdir.glob("grid-*.png"))) == 1


def test_two_write_only_where_both_can(config, start_two, tmp_path):
  """A failure of either ends both with its sentence."""
  path = tmp_path / "meshed.py"
  path.write_text(MESHED.format(tiny=str(config), axis="fsdp", batch=2))
  args = ["imagen_jax.sample", f"--config={path}", "--prompt=a"]
  outdirs = iter([tmp_path / "one", tmp_path / "two"])
  variables = start_two.variables()
  two = [
    start([*args, f"--outdir={next(outdirs)}"], **env) for env in variables
  ]
  for process in two:
    _, said = process.communicate()
    assert process.returncode == 1
    expected = f"error: {tmp_path}/two of process 1 is not that of process 0, "
    assert expected in said
  assert not list(tmp_path.glob("*/*.probe"))


def test_two_evaluate(here, config, start_two, tmp_path):
  """They sample like one process, and measure the same images alike."""
  path, inception = tmp_path / "meshed.py", tmp_path / "inception.safetensors"
  path.write_text(MESHED.format(tiny=str(config), axis="fsdp", batch=2))
  rng = np.random.default_rng(0)
  # Kernels alone are random: gains and variances are 1.
  random = lambda leaf: np.float32(
    rng.normal(size=leaf.shape) * np.sqrt(2 * leaf.shape[-1] / leaf.size)
    if leaf.ndim > 1
    else np.ones(leaf.shape)
  )
  save_weights(inception, jax.tree.map(random, params_like()), dtype=None)
  args = ["imagen_jax.evaluate", f"--config={path}", "--num_images=5"]
  args += ["--config.text.length=40", "--dataset=captioned_shapes/tiny"]
  args += [f"--data_dir={here}/data", "--batch_size=2"]
  ended(start_alone([*args, f"--outdir={tmp_path}/one"]))
  folder = write_clip(tmp_path / "clip")
  args += [f"--inception={inception}", f"--clip={folder}"]
  _, (silent, _) = ended(start_two([*args, f"--outdir={tmp_path}/two"]))
  check_silent(silent)
  folders = [tmp_path / name / "images" for name in ("one", "two")]
  assert len(check_same_pictures(*folders)) == 5
  shutil.copytree(folders[1], tmp_path / "again" / "images")
  ended(start_alone([*args, f"--outdir={tmp_path}/again"]))
  one, two, again = (
    json.loads((tmp_path / name / "test.json").read_text())
    for name in ("one", "two", "again")
  )
  losses = [
    [value for loss in report["loss"].values() for value in loss.values()]
    for report in (one, two)
  ]
  np.testing.assert_allclose(*losses, rtol=1e-4)
  assert two["claims_that_hold_95"] == again["claims_that_hold_95"]
  for metric in ("frechet_pixels", "fid"):
    assert two[metric]["num_images"] == [5, 16]
    distances = two[metric]["distance"], again[metric]["distance"]
    np.testing.assert_allclose(*distances, rtol=1e-6)
    assert distances[0] > 0
  numbers = [
    [*(report["clip"][key] for key in ("score", "standard_error", "shuffled")),
     report["cmmd"]["distance"]]
    for report in (two, again)
  ]  # fmt: skip
  np.testing.assert_allclose(*numbers, rtol=1e-6)
  assert not list(tmp_path.glob("two/statistics/*-of-2*"))


def test_two_need_a_mesh_to_sample(config, start_two, tmp_path):
  args = ["imagen_jax.sample", f"--config={config}", "--prompt=a"]
  args += [f"--outdir={tmp_path}/none"]
  two = start_two(args)
  said = [process.communicate()[1] for process in two]
  assert two[0].returncode == 1
  assert two[1].returncode != 0  # or the first is gone before it reports it
  expected = "error: the config has no mesh, expected one of all processes\n"
  assert said[0].endswith(expected)
  assert not (tmp_path / "none").exists()
