"""Metrics on an object store, where nothing can be appended."""

import errno
import json
import os
import pathlib

import numpy as np
from etils import epath

from imagen_jax.training import metric_files
from imagen_jax.training.metrics import FILE, Metrics


def rows(workdir):
  return [json.loads(x) for x in (workdir / FILE).read_text().splitlines()]


def write(workdir, first, *steps):
  metrics = Metrics(workdir, first)
  for step in steps:
    metrics.write(step, {"loss": step / 2})
  metrics.write_image(steps[-1], "samples", np.zeros((4, 4, 3), np.uint8))
  metrics.close()


class Store:
  """Files as of an object store: none can be appended to."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self.full = False

  def _at(self, path) -> pathlib.Path:
    return self._folder / os.fspath(path).removeprefix("gs://")

  def exists(self, path) -> bool:
    return self._at(path).exists()

  def listdir(self, path):
    return os.listdir(self._at(path))

  def remove(self, path):
    self._at(path).unlink()

  def open(self, path, mode):
    assert mode in ("rb", "wb"), f"{mode}, which object stores do not have"
    if mode == "wb" and self.full:
      raise OSError(errno.EHOSTUNREACH, "No route to host")
    return self._at(path).open(mode)


def test_an_object_store_gets_the_file_whole(tmp_path, monkeypatch):
  store = Store(tmp_path)
  path = epath.Path("gs://bucket/run") / FILE
  monkeypatch.setattr(type(path), "_backend", store)
  workdir = tmp_path / "bucket" / "run"
  workdir.mkdir(parents=True)
  write("gs://bucket/run", 0, 1, 2, 3)
  assert [row["step"] for row in rows(workdir)] == [1, 2, 3]
  said = []
  metrics = Metrics("gs://bucket/run", 2, log=said.append)
  assert [row["step"] for row in rows(workdir)] == [1, 2]
  for step in range(3, 7):
    store.full = step in (4, 5)
    metrics.write(step, {"loss": 1.0})
  metrics.close()
  assert [row["step"] for row in rows(workdir)] == [1, 2, 3, 6]
  assert said == [
    f"metrics cannot be written from step 4 on, gs://bucket/run/{FILE}: "
    "No route to host; training continues without",
    "metrics are written again, from step 6 on",
  ]


def test_lines_on_an_object_store_are_in_parts(tmp_path, monkeypatch):
  """None is larger than it may be, and a resumed run drops what is later."""
  monkeypatch.setattr(metric_files, "_MAX_LINES", 3)
  path = epath.Path("gs://bucket/run") / FILE
  monkeypatch.setattr(type(path), "_backend", Store(tmp_path))
  workdir = tmp_path / "bucket" / "run"
  workdir.mkdir(parents=True)

  def parts():
    files = sorted(workdir.glob(f"{FILE}*"))
    lines = {file.name: file.read_text().splitlines() for file in files}
    return {k: [json.loads(x)["step"] for x in v] for k, v in lines.items()}

  write("gs://bucket/run", 0, *range(10, 90, 10))
  later = {f"{FILE}.00000040": [40, 50, 60], f"{FILE}.00000070": [70, 80]}
  assert parts() == {FILE: [10, 20, 30], **later}
  write("gs://bucket/run", 50, 60, 70)
  later = {f"{FILE}.00000040": [40, 50, 60], f"{FILE}.00000070": [70]}
  assert parts() == {FILE: [10, 20, 30], **later}
  write("gs://bucket/run", 5, 6)
  assert parts() == {FILE: [6]}
