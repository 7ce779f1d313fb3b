"""Evaluations during training: what they measure, and which state they keep."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from imagen_jax.data.images import to_float
from imagen_jax.evals.judged import read_scenes
from imagen_jax.shapes.examples import draw_example
from imagen_jax.training import evaluation
from imagen_jax.training.evaluation import Best, Evaluator
from imagen_jax.training.settings import Training

COUNT = 5


class Progress:
  def __init__(self):
    self.lines = []

  def log(self, line):
    self.lines.append(line)


def make_job(workdir=None, metric="judge", **training):
  settings = Training(num_samples=2, evaluate_metric=metric, **training)
  run = types.SimpleNamespace(
    training=settings, stage=None, sampling=None, text=None
  )
  return types.SimpleNamespace(
    run=run, text_params=None, workdir=workdir, progress=Progress()
  )


@pytest.fixture
def records():
  found = [draw_example("test", i) for i in range(COUNT)]
  return [{**record, "image": record["image"][::4, ::4]} for record in found]


@pytest.fixture
def evaluator(records, monkeypatch):
  """evaluator(metric, images): of a net that gives these images."""

  def make(metric, images):
    calls = []

    def sample(stage, sampling, params, text, batch, keys, *, steps):
      del stage, sampling, params, text
      assert len(keys) == 2  # always as large as a sample grid
      calls.append((steps, np.asarray(jax.random.key_data(keys))))
      rows = [
        next(
          i for i, r in enumerate(records)
          if np.array_equal(to_float(r["image"]), image)
        )
        for image in batch["image"]
      ]  # fmt: skip
      return np.stack([to_float(images[i]) for i in rows])

    monkeypatch.setattr(evaluation, "sample", sample)
    monkeypatch.setattr(
      evaluation.published, "text_encoder", lambda *args: None
    )
    scenes = read_scenes(records, range(COUNT)) if metric == "judge" else None
    real = np.stack([to_float(record["image"]) for record in records])
    made = Evaluator(make_job(metric=metric), {"image": real}, scenes)
    return made, calls

  return make


def test_the_judge_counts_claims_of_every_image(evaluator, records):
  real = [record["image"] for record in records]
  made, calls = evaluator("judge", real)
  found = made.measure(None)
  assert found["evaluate/judge"] > 0.97
  assert found["evaluate/judge_low"] < found["evaluate/judge"]
  assert found["evaluate/judge"] <= found["evaluate/judge_high"]
  assert len(calls) == 3  # of 2, 2 and 1 images
  keys = np.concatenate([keys for _, keys in calls])
  assert len(np.unique(keys, axis=0)) == COUNT  # each has noise of its own
  blank = [np.zeros_like(image) for image in real]
  made, _ = evaluator("judge", blank)
  assert made.measure(None)["evaluate/judge"] < 0.3


def test_the_distance_is_to_the_real_images(evaluator, records):
  real = [record["image"] for record in records]
  made, _ = evaluator("frechet_pixels", real)
  assert abs(made.measure(None)["evaluate/frechet_pixels"]) < 1e-6
  dark = [image // 2 for image in real]
  made, _ = evaluator("frechet_pixels", dark)
  assert made.measure(None)["evaluate/frechet_pixels"] > 1


def test_compiling_samples_one_batch_of_no_steps(evaluator, records):
  made, calls = evaluator("judge", [record["image"] for record in records])
  made.sample(None, steps=0)
  assert [steps for steps, _ in calls] == [0]


class Saved:
  """Stands for Checkpoints: keeps the newest."""

  def __init__(self, workdir):
    self.folder, self.steps = workdir / "best" / "checkpoints", []

  def save(self, step, state, config):
    self.steps.append((step, state))
    for old in self.folder.glob("*"):
      old.rmdir()
    (self.folder / str(step)).mkdir(parents=True)


@pytest.fixture
def best(tmp_path, monkeypatch):
  """best(metric): one of the workdir, as a run that resumes has it."""

  def newest(workdir):
    assert workdir == f"{tmp_path}/best"
    (path,) = (tmp_path / "best" / "checkpoints").iterdir()
    return int(path.name), path

  monkeypatch.setattr(evaluation, "newest", newest)
  monkeypatch.setattr(
    evaluation,
    "has_checkpoint",
    lambda workdir: (tmp_path / "best" / "checkpoints").exists(),
  )
  saved = Saved(tmp_path)

  def make(metric="frechet_pixels"):
    scenes = [] if metric == "judge" else None
    evaluator = Evaluator(make_job(str(tmp_path), metric), {}, scenes)
    return Best(evaluator, saved), saved

  return make


@pytest.mark.parametrize(
  ("metric", "kept"), [("frechet_pixels", [1, 3]), ("judge", [1, 2, 4])]
)
def test_a_better_value_is_kept(best, metric, kept):
  """A distance is better if it is smaller, a share if it is larger."""
  keeper, saved = best(metric)
  for step, value in enumerate((0.5, 0.6, 0.4, 0.7, 0.5), start=1):
    keeper.offer(step, value, f"state {step}", {})
  assert saved.steps == [(step, f"state {step}") for step in kept]


def test_a_resumed_run_knows_the_best(best):
  first, saved = best()
  first.offer(5, 0.5, None, {})
  again, _ = best()
  again.offer(10, 0.6, None, {})
  assert [step for step, _ in saved.steps] == [5]
  again.offer(15, 0.4, None, {})
  assert [step for step, _ in saved.steps] == [5, 15]


def test_a_value_whose_save_was_killed_does_not_count(best, tmp_path):
  """best.json has the value of step 10, whose checkpoint is not there."""
  first, saved = best()
  first.offer(5, 0.5, None, {})
  first.offer(10, 0.1, None, {})
  folder = tmp_path / "best" / "checkpoints"
  (folder / "10").rename(folder / "5")
  again, _ = best()
  again.offer(10, 0.3, None, {})  # worse than 0.1, better than 0.5
  assert [step for step, _ in saved.steps] == [5, 10, 10]


def test_the_same_step_again_is_no_rival(best):
  """As in a run that resumes before it; its value may differ in rounding."""
  first, saved = best()
  first.offer(5, 0.5, None, {})
  again, _ = best()
  again.offer(5, 0.5, None, {})
  assert [step for step, _ in saved.steps] == [5, 5]


@pytest.mark.parametrize(
  "text", ["{", "[]", '{"metric": "evaluate/judge", "values": {"5": 1}}', "{}"]
)
def test_values_that_cannot_be_used_are_begun_again(best, tmp_path, text):
  first, saved = best()
  first.offer(5, 0.5, None, {})
  (tmp_path / "best" / "best.json").write_text(text)
  again, _ = best()
  again.offer(10, 0.9, None, {})
  assert [step for step, _ in saved.steps] == [5, 10]
  written = json.loads((tmp_path / "best" / "best.json").read_text())
  assert written["values"] == {"10": 0.9}


def test_bad_settings_are_named():
  with pytest.raises(
    ValueError, match="evaluate_metric is 'fid', expected fre"
  ):
    Training(evaluate_metric="fid")
  with pytest.raises(
    ValueError, match="evaluate_every is 0, expected at least"
  ):
    Training(evaluate_every=0)
  with pytest.raises(
    ValueError, match="evaluate_images is 1, expected at leas"
  ):
    Training(evaluate_images=1)


@pytest.mark.parametrize(
  ("metric", "stage", "said"),
  [
    (
      "frechet_pixels",
      {"train_size": 8},
      "for images of 8 pixels, expected at",
    ),
    (
      "judge",
      {"crop_size": 32},
      "'judge', expected a stage with text that tra",
    ),
  ],
)
def test_a_metric_that_does_not_suit_the_stage(metric, stage, said):
  run = make_job(metric=metric, evaluate_every=5).run
  run.stage = types.SimpleNamespace(
    **{"crop_size": None, "train_size": 64} | stage
  )
  with pytest.raises(ValueError, match=said):
    evaluation.check_evaluation(run)
  run.training = dataclasses.replace(run.training, evaluate_every=None)
  evaluation.check_evaluation(run)
