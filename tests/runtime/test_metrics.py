"""metrics.jsonl and TensorBoard's files."""

import json

import numpy as np
import pytest
from etils import epath

from imagen_jax.runtime.metrics import FILE, Metrics, memory


def rows(workdir):
  return [json.loads(x) for x in (workdir / FILE).read_text().splitlines()]


def write(workdir, first, *steps, **options):
  metrics = Metrics(str(workdir), first, **options)
  for step in steps:
    metrics.write(step, {"loss": step / 2, "bad": float("nan")})
  metrics.write_image(steps[-1], "samples", np.zeros((4, 4, 3), np.uint8))
  metrics.close()


def test_a_line_for_every_step(tmp_path):
  write(tmp_path, 0, 1, 2)
  assert rows(tmp_path) == [
    {"step": 1, "loss": 0.5, "bad": None},
    {"step": 2, "loss": 1.0, "bad": None},
  ]
  (events,) = tmp_path.glob("events.out.tfevents.*")
  assert b"loss" in events.read_bytes() and b"samples" in events.read_bytes()


def test_lines_that_will_come_again_are_dropped(tmp_path):
  """Those after the step that a run goes on from, and a torn one."""
  write(tmp_path, 0, 1, 2, 3, 4)
  with (tmp_path / FILE).open("a") as file:
    file.write('{"step": 2, "lo')
  write(tmp_path, 2, 3)
  assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_an_end_while_they_are_dropped_loses_no_others(tmp_path, monkeypatch):
  write(tmp_path, 0, 1, 2, 3)

  def end(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(type(epath.Path(tmp_path)), "replace", end)
    with pytest.raises(KeyboardInterrupt):
      Metrics(str(tmp_path), 1)
  assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
  write(tmp_path, 1, 2)
  assert [row["step"] for row in rows(tmp_path)] == [1, 2]
  assert not (tmp_path / f"{FILE}.new").exists()


def test_one_of_many_processes_writes(tmp_path):
  write(tmp_path, 0, 1)
  write(tmp_path, 0, 1, 2, quiet=True)
  assert [row["step"] for row in rows(tmp_path)] == [1]


def test_memory_is_of_this_process():
  before = memory()["host_gib"]
  block = np.ones(2**27, np.uint8)  # an eighth of a GiB
  assert 0.05 < before < 64
  assert memory()["host_gib"] >= max(before, block.nbytes / 2**30)
