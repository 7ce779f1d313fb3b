"""From a dataset to an image: train, kill, resume, export, sample.

Every verb runs in a process of its own, as a person would call it.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from imagen_jax.interop.weights import read_metadata

ROOT = pathlib.Path(__file__).parents[2]
# One device, as on a person's machine.
ENV = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}


def checkpoint_steps(workdir) -> list[int]:
  folder = workdir / "checkpoints"
  names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdigit())


def start_training(here, workdir, *args: str) -> subprocess.Popen:
  command = [sys.executable, "-m", "imagen_jax.train"]
  command += [f"--config={here}/tiny.py", f"--workdir={workdir}", *args]
  pipe = subprocess.PIPE
  return subprocess.Popen(
    command, cwd=ROOT, env=ENV, stdout=pipe, stderr=pipe, encoding="utf-8"
  )


def train(here, workdir, *args: str) -> list[str]:
  """Trains to the end; what it printed. On standard error that is nothing."""
  process = start_training(here, workdir, *args)
  out, err = process.communicate()
  assert process.returncode == 0, err
  assert err == ""
  return out.splitlines()


def kill_after_checkpoint(process: subprocess.Popen, workdir) -> None:
  """Kills the process at once when there is a checkpoint."""
  try:
    while not checkpoint_steps(workdir):
      assert process.poll() is None, process.communicate()[1]
      time.sleep(0.05)
  finally:
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def killed(here):
  """The last checkpoint's step of a run that was killed.

  It also prepared its own dataset.
  """
  args = ("--config.train.steps=100000", f"--config.data.data_dir={here}/fresh")
  endless = start_training(here, here / "killed", *args)
  kill_after_checkpoint(endless, here / "killed")
  return checkpoint_steps(here / "killed")[-1]


@pytest.fixture(scope="module")
def steps(killed):
  return killed + 7


@pytest.fixture(scope="module")
def resumed(here, killed, steps):
  """What a run printed that resumed from there."""
  return train(here, here / "killed", f"--config.train.steps={steps}")


@pytest.fixture(scope="module")
def whole(here, resumed, steps):
  """What a run printed that was left alone."""
  return train(here, here / "whole", f"--config.train.steps={steps}")


@pytest.fixture(scope="module")
def exported(here, whole, run):
  """What export printed of the same run."""
  args = (f"--workdir={here}/whole", f"--output={here}/tiny.safetensors")
  done = run("export", f"--config={here}/tiny.py", *args)
  assert (done.returncode, done.stderr) == (0, "")
  return done.stdout


def test_a_killed_run_resumes_and_ends_as_if_it_had_not_been(
  here, resumed, whole, killed, steps, state_of
):
  assert f"resumed from step {killed}" in resumed
  assert not any(line.startswith("resumed") for line in whole)
  states = []
  for name in ("killed", "whole"):
    assert checkpoint_steps(here / name)[-1] == steps
    states.append(state_of(here / name, steps))
  one, other = states
  assert jax.tree.structure(one) == jax.tree.structure(other)
  assert one["step"] == steps
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_tensorflow_is_not_needed(here, killed, resumed, steps, exported):
  """Not to prepare data, to train, to be killed and resumed, nor to export."""
  command = [sys.executable, "-c", "import tensorflow"]
  done = subprocess.run(command, env=ENV, capture_output=True, text=True)
  assert "tensorflow is refused" in done.stderr
  assert len(list((here / "fresh").rglob("*.array_record-*"))) == 3
  every = {"tensors": 0}  # not a sample of them
  board = EventAccumulator(str(here / "killed"), size_guidance=every).Reload()
  shown = {event.step for event in board.Tensors("loss")}
  assert shown >= {1, *range(killed + 1, steps + 1)}
  assert board.Tensors("samples")


def test_progress_is_plain_lines(resumed, whole, killed, steps):
  line = r"train (\d+)/\d+  [\d.e-]+ s/step  ETA \d+:\d\d:\d\d  loss \d+\.\d{4}"
  for lines, first in ((whole, 1), (resumed, killed + 1)):
    found = [re.fullmatch(line, text) for text in lines]
    done = [int(match.group(1)) for match in found if match]
    assert done == list(range(first, steps + 1))
    assert any(re.match(r"[\d,]+ parameters on 1 device", x) for x in lines)
    assert any(re.fullmatch(r"compiled in [\d.]+ s", x) for x in lines)
    assert lines[-1].startswith(f"trained to step {steps}: ")


def test_a_run_leaves_metrics_and_grids(here, whole, steps):
  files = (here / "whole").glob("events.out.tfevents.*")
  events = b"".join(path.read_bytes() for path in files)
  for name in (b"loss", b"grad_norm", b"seconds/step", b"samples"):
    assert name in events
  names = sorted(path.name for path in (here / "whole" / "samples").iterdir())
  due = [
    step for step in range(1, steps + 1) if step % 10 == 0 or step == steps
  ]
  assert names == [f"{step:08}.png" for step in due]
  with Image.open(here / "whole" / "samples" / names[0]) as image:
    assert image.size == (2 * 66 - 2, 4 * 66 - 2)  # sample and truth of four


def test_a_finished_run_has_nothing_to_do(here, whole, steps):
  lines = train(here, here / "whole", f"--config.train.steps={steps}")
  assert lines == [
    f"resumed from step {steps}",
    f"trained to step {steps}: {here}/whole",
  ]


def test_export_writes_the_averaged_weights(here, exported, steps):
  path = here / "tiny.safetensors"
  assert re.fullmatch(rf"{path}: \d\.\d\d MB, step {steps}\n", exported)
  note = read_metadata(path)
  assert note["step"] == str(steps)
  assert json.loads(note["config"])["stage"]["size"] == 8


def test_a_truncated_checkpoint_is_one_line(here, whole, steps, run, tmp_path):
  workdir = shutil.copytree(here / "whole", tmp_path / "whole")
  newest = workdir / "checkpoints" / str(steps)
  for path in (newest / "state" / "ocdbt.process_0" / "d").iterdir():
    path.write_bytes(path.read_bytes()[:20])
  args = (f"--workdir={workdir}", f"--output={tmp_path}/tiny.safetensors")
  done = run("export", f"--config={here}/tiny.py", *args)
  said = f"error: checkpoint {newest} cannot be read; if it is damaged, remove "
  assert done.returncode == 1
  assert done.stderr.startswith(said) and done.stderr.count("\n") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_pictures_from_exported_weights_and_from_the_run(here, exported, run):
  args = (f"--config={here}/cascade.py", "--prompt=a red star")
  pictures = []
  for weights in ("tiny.safetensors", "whole"):
    outdir = here / "pictures" / weights
    weights = f"--config.tiny.weights={here}/{weights}"
    done = run("sample", *args, weights, f"--outdir={outdir}")
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = outdir.glob("a_red_star-s0-0-????????.png")
    with Image.open(path) as image:
      pictures.append(np.asarray(image).astype(int))
  assert pictures[0].shape == (8, 8, 3)
  # The one's weights are rounded to bfloat16.
  assert np.abs(pictures[0] - pictures[1]).mean() < 8
