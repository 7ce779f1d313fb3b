"""imagen_jax.train as a library's call, and runs of older versions."""

import dataclasses
import importlib
import json
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import tarfile
import threading
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import imagen_jax
from imagen_jax import build, export, imagen
from imagen_jax.build import defaults, runs
from imagen_jax.checkpoints.manager import newest
from imagen_jax.interop.weights import read_metadata
from imagen_jax.progress import compilations
from imagen_jax.training.loop import Trained
from imagen_jax.training.summary import dry_run

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
OLD = FOLDER.parent / "checkpoints" / "fixtures" / "run.tar.xz"
CONFIG = runpy.run_path(str(FOLDER / "faults" / "conftest.py"))["CONFIG"]


@pytest.fixture
def small(here, tmp_path):
  """The config of the old run, with today's data."""
  settings = {"tiny": str(here / "tiny.py"), "data": str(here / "data")}
  path = tmp_path / "config.py"
  path.write_text(CONFIG.format(steps=3, **settings))
  config = runpy.run_path(str(path))["get_config"]()
  config.train.checkpoint_every = 3
  config.optimizer.decay_steps = 1000
  return config


@pytest.fixture
def old(tmp_path):
  """The workdir of the old run, which is at step 3."""
  with tarfile.open(OLD) as file:
    file.extractall(tmp_path / "old", filter="data")
  return tmp_path / "old" / "run"


def losses(path: pathlib.Path) -> dict[int, float]:
  rows = map(json.loads, path.read_text().splitlines())
  return {row["step"]: row["loss"] for row in rows}


def process() -> list:
  """What a call must leave as it was."""
  monitoring = jax._src.monitoring
  return [
    {thread.name for thread in threading.enumerate()},
    [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
    jax.sharding.get_mesh(),
    len(monitoring.get_event_duration_listeners()),
    len(monitoring.get_event_listeners()),
  ]


def check_process(before: list) -> None:
  """Threads that were reading a batch may need a moment to end.

  Those of the tests before may end meanwhile.
  """
  threads, *state = before
  end = time.monotonic() + 300
  while process()[0] - threads and time.monotonic() < end:
    time.sleep(0.1)
  left, *now = process()
  assert left - threads == set()
  assert now == state


@pytest.fixture
def interruptible():
  """As in a terminal; a test in the background begins without SIGINT."""
  kept = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, kept)


def test_an_old_run_is_interrupted_and_goes_on(small, old, interruptible):
  """As it did then: in the main thread, then in one that has no signals."""
  small.train.steps = 6
  small.train.evaluate_every = 3  # also compiled before the first step
  small.train.evaluate_metric = "judge"
  small.train.evaluate_images = 5
  before, seen = process(), {}

  def interrupt(step, metrics):
    seen[step] = metrics["loss"]
    if step == 4:
      os.kill(os.getpid(), signal.SIGINT)

  done = imagen.train(small, old, callback=interrupt, profile_steps=(4, 9))
  assert done == Trained(5, str(old), interrupted=True)
  assert list(old.glob("trace/**/*.xplane.pb"))  # up to where it ended
  check_process(before)

  ends = []

  def note(step, metrics):
    seen[step], compiled_then = metrics, compiled.count
    ends.append(compiled_then)

  train = lambda: ends.append(imagen.train(small, str(old), callback=note))
  with compilations() as compiled:
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
  # The last step's checkpoint and samples, which follow its metrics, find their
  # programs compiled.
  assert ends == [compiled.count, Trained(6, str(old))]
  assert (old / "samples" / "00000006.png").exists()
  check_process(before)

  last = seen[6]
  assert set(map(type, last.values())) == {float}
  assert {"loss", "learning_rate", "seconds/step", "bad_records"} <= last.keys()
  assert last["evaluate/judge_low"] <= last["evaluate/judge"]
  assert newest(f"{old}/best")[0] == 6  # step 5 was not for an evaluation
  seen[6] = last["loss"]
  expected = losses(old.parent / "more" / "metrics.jsonl")
  assert losses(old / "metrics.jsonl") == {**losses_until(expected, 3), **seen}
  for step in (4, 5, 6):
    np.testing.assert_allclose(seen[step], expected[step], rtol=1e-4)


def losses_until(found: dict[int, float], last: int) -> dict[int, float]:
  return {step: loss for step, loss in found.items() if step <= last}


def test_an_old_run_resumes_after_a_setting_was_added(small, old, monkeypatch):
  """At its default; at another value it is refused, as any change is."""

  @dataclasses.dataclass(frozen=True)
  class Tomorrow(runs.Data):
    colour: str = "all"

  monkeypatch.setattr(runs, "Data", Tomorrow)
  monkeypatch.setitem(defaults.SECTIONS, "data", (Tomorrow, {}, {}))
  assert imagen.train(small, old) == Trained(3, str(old))
  before = process()
  said = f"checkpoint {old}/checkpoints/3 is of another config: data."
  small.data.colour = "red"
  with pytest.raises(ValueError, match=f"^{said}colour was all, is red "):
    imagen.train(small, old)
  del small.data.colour
  small.data.seed = 1
  with pytest.raises(ValueError, match=f"^{said}seed was 0, is 1 "):
    imagen.train(small, old)
  check_process(before)
  assert imagen.train(small, old, allow_config_change=True).step == 3


def test_an_old_run_is_exported(small, old, capsys):
  config, output = old.parents[1] / "config.py", old.parent / "old.safetensors"
  flags = [f"--config={config}", f"--workdir={old}", f"--output={output}"]
  export.main(flags)
  said = capsys.readouterr().out
  assert re.fullmatch(rf"{output}: 0\.\d\d MB, step 3\n", said)
  assert read_metadata(output)["step"] == "3"


def test_a_dry_run_shows_a_batch_and_writes_nothing_else(
  small, tmp_path, capsys
):
  run = build.run(small)
  assert dry_run(run, str(tmp_path / "dry"))
  (path,) = (tmp_path / "dry").iterdir()
  lines = capsys.readouterr().out.splitlines()
  assert lines[-2:] == [
    "batch of 8 = 1 x 8 on data 8: 1 at a time on a device",
    f"the first of it: {path}",
  ]
  assert any(re.fullmatch(r"parameters +9,043", line) for line in lines)
  assert any(re.fullmatch(r"bytes per device +[\d,]+", line) for line in lines)
  with Image.open(path) as image:
    assert min(image.size) > 100


def test_mistakes_are_value_errors(small, tmp_path):
  before = process()
  for key, value, said in (
    ("train.foo", 1, "^unknown config key train.foo, expected steps, "),
    ("mesh.fsdp", 3, "^mesh is .* of 3 devices or a multiple"),
    ("text.weights", "nowhere", "^weights nowhere cannot be read: "),
    ("data.batch_size", 6, "^batch_size is 6, expected a multiple of the 8 "),
  ):
    wrong = small.copy_and_resolve_references()
    part, name = key.split(".")
    wrong[part][name] = value
    with pytest.raises(ValueError, match=said):
      imagen.train(wrong, tmp_path / "new")
  check_process(before)
  assert not (tmp_path / "new").exists()


def test_the_package_has_train_whether_or_not_its_module_was_imported():
  """It is the verb's module, which is also the call."""
  code = "import imagen_jax, sys; print('jax' in sys.modules)"
  done = subprocess.run([sys.executable, "-c", code], stdout=-1, cwd=ROOT)
  assert done.stdout == b"False\n"
  assert imagen_jax.train is importlib.import_module("imagen_jax.train")
  with pytest.raises(ValueError, match="^config key colour is unknown, expect"):
    imagen_jax.train(ConfigDict({"colour": 1}), "nowhere")
  with pytest.raises(AttributeError, match="has no attribute 'trian'"):
    _ = imagen_jax.trian


def test_names_and_overrides(small, old):
  """The config by its path, with keys of its own; the given one is kept."""
  path = str(old.parents[1] / "config.py")
  change = {"train.steps": 2, "data.patience": 9.0}
  change["optimizer.decay_steps"] = 1000  # as the old run had it
  assert imagen.train(path, old, overrides=change).step == 3
  kept = small.to_json_best_effort()
  with pytest.raises(ValueError, match="data.seed was 0, is 4 "):
    imagen.train(small, old, overrides={"data.seed": 4})
  assert small.to_json_best_effort() == kept
