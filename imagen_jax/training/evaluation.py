"""Measures samples of the averaged weights during training; keeps the best.

Not in the paper, which chooses no checkpoint.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from imagen_jax import files
from imagen_jax.checkpoints.manager import Checkpoints, has_checkpoint, newest
from imagen_jax.data import images
from imagen_jax.data.source import load_source
from imagen_jax.evals import drawn, judged
from imagen_jax.evals.features import PIXEL_SIZE, pixel_features
from imagen_jax.evals.frechet import FeatureStats, frechet_distance
from imagen_jax.interop import published
from imagen_jax.parallel.processes import from_first
from imagen_jax.shapes.scenes import Scene
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.settings import NoText
from imagen_jax.training.grids import sample
from imagen_jax.training.setup import Run

if TYPE_CHECKING:  # it imports this module
  from imagen_jax.training.job import Job

BEST = "best"  # the folder of the best checkpoint, in the workdir
HISTORY = "best.json"  # the values of the checkpoints that were the best


def check_evaluation(run: Run) -> None:
  """Checks what an evaluation needs, before anything is read or made.

  Raises:
    ValueError: the dataset or the stage does not suit train.evaluate_metric.
  """
  training, stage = run.training, run.stage
  if training.evaluate_every is None:
    return
  key = f"train.evaluate_metric is {training.evaluate_metric!r}"
  if training.evaluate_metric == "judge":
    if stage.crop_size is not None or isinstance(run.text, NoText):
      raise ValueError(
        f"{key}, expected a stage with text that trains on full images"
      )
  elif stage.train_size < PIXEL_SIZE:
    raise ValueError(
      f"{key}, for images of {stage.train_size} pixels, expected at least"
      f" {PIXEL_SIZE}"
    )
  _load(run)


def _load(run: Run) -> Sequence[Mapping[str, Any]]:
  """Opens the records of train.sample_split, of a mixture's first dataset."""
  part = run.data.parts[0]
  features = ["image"]
  if not isinstance(run.text, NoText):
    features.append("caption")
  if run.training.evaluate_metric == "judge":
    features.append("scene")
  return load_source(
    part.name,
    run.training.sample_splits,
    run.data.data_dir,
    features=features,
    paths={"image": part.image, "caption": part.caption},
    template=part.template,
    key="train.sample_split",
  )


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Samples the captions of fixed records and measures the images.

  Attributes:
    job: the run.
    batch: the records as a batch: image, and lowres, tokens and mask if any.
    scenes: the captions' scenes, for the judge; None for a distance.
  """

  job: "Job"
  batch: dict[str, np.ndarray]
  scenes: list[Scene] | None

  @property
  def metric(self) -> str:
    """The name of the metric in the log."""
    return f"evaluate/{self.job.run.training.evaluate_metric}"

  @functools.cached_property
  def real(self) -> FeatureStats:
    """The moments of the real images' pixels."""
    return FeatureStats.of(pixel_features(images.to_uint8(self.batch["image"])))

  @functools.cached_property
  def encode(self) -> TextEncoder | None:
    """The encoder of the captions; None for an unconditional net."""
    return published.text_encoder(self.job.run.text, self.job.text_params)

  def measure(self, params: Any) -> dict[str, float]:
    """Measures the averaged weights; alike on all processes.

    Returns:
      The metric by its name, and the ends of its 95 % interval if it has one.
    """
    made = images.to_uint8(self.sample(params))
    if self.scenes is None:
      found = FeatureStats.of(pixel_features(made))
      return {self.metric: frechet_distance(found, self.real)}
    (counts,) = judged.count_claims(made.__getitem__, self.scenes)
    low, high = judged.intervals(counts)["all"]
    return {
      self.metric: judged.shares(counts)["all"],
      f"{self.metric}_low": low,
      f"{self.metric}_high": high,
    }

  def sample(self, params: Any, steps: int | None = None) -> np.ndarray:
    """Samples all images; with steps=0 it only compiles the program.

    Batches are as large as those of sample grids, whose program is the same.
    The noise is fixed, so that measurements of different steps compare.
    """
    run = self.job.run
    size, count = run.training.num_samples, len(self.batch["image"])
    found = []
    for start in range(0, count if steps is None else 1, size):
      rows = np.minimum(np.arange(start, start + size), count - 1)
      part = {name: array[rows] for name, array in self.batch.items()}
      text = None
      if self.encode is not None:
        text = self.encode.from_ids(part["tokens"], part["mask"])
      keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), rows)
      found.append(
        sample(run.stage, run.sampling, params, text, part, keys, steps=steps)
      )
    return np.concatenate(found)[:count]

  def improves(self, value: float, best: float) -> bool:
    """Returns whether a value is better than another one."""
    return value > best if self.scenes is not None else value < best


def read_evaluator(job: "Job") -> Evaluator | None:
  """Reads the records of evaluations; None without train.evaluate_every.

  Raises:
    ValueError: a record cannot be used.
  """
  run, training = job.run, job.run.training
  if training.evaluate_every is None:
    return None
  source = _load(run)
  texts = job.tokenizer is not None
  found = drawn.draw(source, training.evaluate_images, 0, captions=texts)
  batch = _images(run.stage, found.records)
  if texts:
    batch["tokens"], batch["mask"] = job.tokenizer(list(found.captions))
  scenes = None
  if training.evaluate_metric == "judge":
    scenes = judged.read_scenes(found.records, found.numbers)
  return Evaluator(job, batch, scenes)


def _images(
  stage: Stage, records: Sequence[Mapping[str, Any]]
) -> dict[str, np.ndarray]:
  """Returns records' images, and what they are upsampled from, for a stage.

  A stage that trains on crops gets the central ones.
  """
  side, found = stage.train_size, []
  edge = (stage.size - side) // 2
  for record in records:
    image = images.to_float(drawn.real_image(record, stage.size))
    found.append(image[edge : edge + side, edge : edge + side])
  batch = {"image": np.stack(found)}
  if stage.lowres_size:
    small = side // stage.factor
    batch["lowres"] = np.stack([images.resize(image, small) for image in found])
  return batch


class Best:
  """Keeps the checkpoint with the best value of a metric, in workdir/best.

  It is a checkpoint like those of the run, so `sample` and `export` read it,
  and kill -9 leaves the best one before it. best.json has the values of all
  checkpoints that were the best, by step.

  Args:
    evaluator: measures.
    saved: the checkpoints of workdir/best.
  """

  def __init__(self, evaluator: Evaluator, saved: Checkpoints):
    self.evaluator, self._saved = evaluator, saved
    self._workdir = f"{evaluator.job.workdir}/{BEST}"
    self._values = self._read() if jax.process_index() == 0 else {}

  def offer(
    self, step: int, value: float, state: Any, config: Mapping[str, Any]
  ) -> None:
    """Saves a state, in the background, if its value is the best so far."""
    better = jax.process_index() == 0 and all(
      self.evaluator.improves(value, best)
      for at, best in self._values.items()
      if at != step
    )
    if not from_first(np.array(better)):
      return
    self._saved.save(step, state, config)
    if jax.process_index() == 0:
      self._values[step] = value
      self._write()

  def _write(self) -> None:
    """Writes the values; a failure is logged and does not end training."""
    found = {"metric": self.evaluator.metric, "values": self._values}
    try:
      text = json.dumps(found, indent=1)
      files.write(epath.Path(self._workdir) / HISTORY, text, parents=True)
    except ValueError as error:
      self.evaluator.job.progress.log(f"{error}; training continues without")

  def _read(self) -> dict[int, float]:
    """Reads the value of the kept checkpoint; none if it is not known.

    Values of checkpoints that kill -9 kept from being saved do not count.
    """
    path = epath.Path(self._workdir) / HISTORY
    if not path.exists() or not has_checkpoint(self._workdir):
      return {}
    step, _ = newest(self._workdir)
    try:
      found = files.read_json(path, "best values")
      if found["metric"] == self.evaluator.metric:
        return {step: float(found["values"][str(step)])}
    except (KeyError, TypeError, ValueError) as error:
      self.evaluator.job.progress.log(f"{path} is not used: {error!r}")
    return {}
