"""A run whose workdir is in a bucket, and verbs that read and write there."""

import io
import json
import re
import signal
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

COMMITTED = "commit_success.txt"  # what makes a checkpoint of Orbax's one
CASCADE = """
import runpy
from ml_collections import ConfigDict

def get_config():
  stage = runpy.run_path({config!r})["get_config"]()
  stage.weights = "gs://bucket/run"
  keys = ("stage", "sampling", "weights")
  return ConfigDict(dict(
    stages=("tiny",), tiny={{key: stage[key] for key in keys}},
    text=stage.text, batch_size=1,
  ))
"""


@pytest.fixture(scope="module")
def start(training, storage):
  """start(verb, *args): a process for which gs:// is the stand-in."""

  def start(verb: str, *args: str):
    command = [sys.executable, "-m", f"imagen_jax.{verb}", *args]
    return training.run(command, **storage.env)

  return start


def steps(storage, run: str, done: str = "") -> list[int]:
  """Of the checkpoints of a run that have some file."""
  names = "\n".join(storage.names("bucket"))
  found = re.findall(rf"^{run}/checkpoints/(\d+)/{done}", names, re.M)
  return sorted({int(step) for step in found})


@pytest.fixture(scope="module")
def killed(training, storage, start):
  """The steps that are safe of a run that was killed inside a save."""
  run = start("train", *training.flags("gs://bucket/run"))

  def saves_again() -> bool:
    safe, begun = (steps(storage, "run", x) for x in (COMMITTED, ""))
    return len(safe) > 2 and safe != begun

  run.until_true(saves_again)
  run.send(signal.SIGKILL)
  run.end(-signal.SIGKILL)
  return steps(storage, "run", COMMITTED)


# It need not wait for a minute until the lock of the killed run is lost.
SOON = "from imagen_jax.training import lock; lock.LOST = 1.0"


@pytest.fixture(scope="module")
def resumed(training, storage, killed):
  """The last step of the run that resumed, and what it printed."""
  last = killed[-1] + 3
  command = [sys.executable, *training.replaced(SOON)]
  flags = training.flags("gs://bucket/run", f"--config.train.steps={last}")
  flags += ["--config.train.sample_every=2"]
  flags += ["--config.train.keep_checkpoints=3"]
  run = training.run([*command, *flags], **storage.env)
  return last, run.end(0)


@pytest.fixture(scope="module")
def folder(storage, resumed, tmp_path_factory):
  """All that the run wrote, as files."""
  folder = tmp_path_factory.mktemp("bucket")
  storage.download("bucket", folder)
  return folder / "run"


def test_goes_on_with_the_same_bits(
  training, killed, resumed, folder, undisturbed
):
  last, out = resumed
  assert f"resumed from step {killed[-1]}\n" in out
  assert training.steps(folder) == [last - 2, last - 1, last]
  for step in training.steps(folder):
    training.check_same(folder, undisturbed, step)


def test_it_waited_for_the_lock_of_the_killed_run(storage, resumed):
  _, out = resumed
  assert re.search(r"^workdir gs://bucket/run is held by process \d+ of ", out)
  assert "run/writer.lock" not in storage.names("bucket")


def test_metrics_and_samples_are_whole(resumed, folder):
  last, _ = resumed
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [*range(1, last + 1)]
  assert len(list(folder.glob("events.out.tfevents.*"))) == 2
  drawn = list(folder.glob("samples/*.png"))
  assert drawn
  for path in drawn:
    Image.open(path).load()


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
  training, storage, start, resumed, undisturbed, tmp_path
):
  last, _ = resumed
  objects = storage.buckets["bucket"]
  for name in storage.names("bucket", "run/"):
    spoilt = name.replace("run/", "spoilt/", 1)
    storage.put("bucket", spoilt, objects[name].data)
  for name in storage.names("bucket", f"spoilt/checkpoints/{last}/state/"):
    if "/d/" in name:
      storage.put("bucket", name, objects[name].data[:20])
  args = training.flags("gs://bucket/spoilt", f"--config.train.steps={last}")
  out = start("train", *args).end(0)
  path = f"gs://bucket/spoilt/checkpoints/{last}"
  assert re.search(
    rf"^checkpoint {path} is damaged \(.+\); it is renamed {last}\.damaged, "
    rf"and step {last - 1} taken$", out, re.M
  ), out  # fmt: skip
  storage.download("bucket", tmp_path)
  training.check_same(tmp_path / "spoilt", undisturbed, last)
  assert (tmp_path / f"spoilt/checkpoints/{last}.damaged/state").is_dir()


@pytest.mark.slow
def test_averages_are_exported_and_drawn_with(
  training, storage, start, state_of, resumed, folder, tmp_path
):
  """And with what was exported, from and to the bucket: the same image."""
  last, _ = resumed
  args = [f"--config={training.config}", "--workdir=gs://bucket/run"]
  start("export", *args, "--output=gs://bucket/w.safetensors").end(0)
  storage.download("bucket", tmp_path)
  found = safetensors.numpy.load_file(tmp_path / "w.safetensors")
  ema = jax.tree_util.tree_leaves_with_path(state_of(folder, last)["ema"])
  assert len(found) == len(ema) > 10
  for path, value in ema:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    expected = np.asarray(value, ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found[name], expected)

  config = tmp_path / "cascade.py"
  config.write_text(CASCADE.format(config=str(training.config)))
  pictures = []
  for name in ("run", "w.safetensors"):
    start(
      "sample",
      f"--config={config}",
      f"--config.tiny.weights=gs://bucket/{name}",
      "--prompt=a star",
      f"--outdir=gs://bucket/{name}-drawn",
    ).end(0)
    (file,) = storage.names("bucket", f"{name}-drawn/a_star")
    data = storage.buckets["bucket"][file].data
    pictures.append(np.asarray(Image.open(io.BytesIO(data)), int))
  assert np.abs(pictures[0] - pictures[1]).max() <= 2  # bfloat16


@pytest.mark.slow
def test_text_is_written_and_read_as_t5x(training, storage, start, tmp_path):
  args = [f"--config={training.config}", "--text=t5x"]
  start("export", *args, "--output=gs://bucket/t5x").end(0)
  back = ("--config.text.weights=gs://bucket/t5x", f"--output={tmp_path}/back")
  start("export", *args, *back).end(0)
  storage.download("bucket", tmp_path)
  there, here = tmp_path / "t5x", tmp_path / "back"
  files = [path.relative_to(here) for path in here.rglob("*") if path.is_file()]
  assert len(files) > 5
  for file in files:
    assert (there / file).read_bytes() == (here / file).read_bytes()


@pytest.mark.slow
def test_a_bucket_that_takes_no_more(training, storage, start):
  """As when a user's rights end: logged, and 1 for the last is not saved."""
  storage.buckets["full"] = {}
  run = start("train", *training.flags("gs://full/run"))
  run.until("train 3/")
  storage.refused.add("full")
  out = run.end(1)
  assert "checkpoint gs://full/run/checkpoints/" in out
  assert run.err.splitlines()[-1].startswith("error: checkpoint gs://full/run/")
  assert "Traceback" not in run.err


def test_a_bucket_that_is_not_there(training, storage, monkeypatch, run_each):
  storage.refused.add("closed")
  for name, value in storage.env.items():
    monkeypatch.setenv(name, value)
  flags = [training.flags(f"gs://{x}/run") for x in ("typo", "closed")]
  done = run_each("train", flags)
  said = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  assert said[0] == "error: workdir gs://typo/run: there is no bucket gs://typo"
  where = "error: workdir gs://closed/run cannot be reached: "
  assert said[1].startswith(where) and "Forbidden" in said[1]
  assert done.stdout.splitlines() == ["exit 1", "exit 1"]
  assert len(said) == 2 and "Traceback" not in done.stderr
