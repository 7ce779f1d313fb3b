"""Scores of a cascade's images: what the points of a sweep share, and metrics.

All processes of a job call every method. The first one gets the scores.
"""

import collections
import copy
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from imagen_jax import __version__, build, jobs
from imagen_jax.build import configs
from imagen_jax.checkpoints import manager
from imagen_jax.data import images
from imagen_jax.data.png import grid, write_png
from imagen_jax.evals import drawn as draws
from imagen_jax.evals import judged, lines, points
from imagen_jax.evals.clip_features import ClipFeatures
from imagen_jax.evals.clip_score import clip_score
from imagen_jax.evals.cmmd import cmmd
from imagen_jax.evals.drawn import Drawn
from imagen_jax.evals.embeddings import Embeddings
from imagen_jax.evals.features import Extractor
from imagen_jax.evals.frechet import FeatureStats, frechet_distance
from imagen_jax.evals.statistics import ImageSet, Kept, image_stats
from imagen_jax.evals.text_use import text_use
from imagen_jax.imagen import Imagen
from imagen_jax.interop import published, weights
from imagen_jax.interop.identity import identity
from imagen_jax.parallel import compile_cache
from imagen_jax.parallel.processes import shared_errors
from imagen_jax.request import Row
from imagen_jax.stage import Sampling

SHOWN = 32  # images on a sheet
# The sub-configs of `sampling` that a sweep names by a word of its own.
KINDS = {"sampler": "step", "threshold": "threshold"}


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Holds what all points of an evaluation share.

  Attributes:
    args: the flags.
    config: the cascade's config.
    cascade: the cascade.
    stages: the numbers of the stages that run.
    metrics: the names of the metrics.
    source: the split of the captions.
    drawn: the captions' records.
    reference: the real images that distances are of; None without distances.
    extractors: the features of each Frechet distance, by the metric's name.
    clip: computes CLIP's features; None without metrics that need them.
    outdir: the folder of the results.
  """

  args: flags.FlagValues
  config: ConfigDict
  cascade: Imagen
  stages: range
  metrics: tuple[str, ...]
  source: Sequence[Mapping[str, Any]]
  drawn: Drawn
  reference: ImageSet | None
  extractors: Mapping[str, Extractor]
  clip: ClipFeatures | None
  outdir: epath.Path

  @property
  def size(self) -> int:
    """The resolution of the images, in pixels."""
    return self.cascade.cascade.stages[self.stages[-1]].size

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the stages that run."""
    return tuple(self.cascade.names[i] for i in self.stages)

  def stats(
    self,
    images: ImageSet,
    extractor: Extractor,
    folder: epath.Path,
    title: str,
    kind: type[Kept] = FeatureStats,
  ) -> Kept | None:
    """Returns what is kept of images' features, as image_stats does."""
    return image_stats(
      images,
      extractor,
      folder,
      batch_size=self.args.batch_size,
      title=title,
      kind=kind,
    )

  @property
  def reference_folder(self) -> epath.Path:
    """The folder of what is kept of the real images."""
    folder = self.args.reference_dir or self.outdir / "statistics"
    return epath.Path(folder)

  @functools.cached_property
  def references(self) -> dict[str, FeatureStats | None]:
    """The moments of the real images, by metric."""
    return {
      metric: self.stats(
        self.reference, extractor, self.reference_folder, "real images"
      )
      for metric, extractor in self.extractors.items()
    }

  @functools.cached_property
  def real_embeddings(self) -> Embeddings | None:
    """The real images' features by CLIP; None but on the first process."""
    return self.stats(
      self.reference,
      self.clip.extractor,
      self.reference_folder,
      "clip of real images",
      Embeddings,
    )

  @functools.cached_property
  def caption_features(self) -> np.ndarray:
    """The captions' features by CLIP."""
    return self.clip.of_captions(self.drawn.captions, self.args.batch_size)

  @functools.cached_property
  def real_claims(self) -> collections.Counter:
    """The claims that the captions' real images show."""
    read = lambda i: images.decode(self.drawn.records[i]["image"])
    return judged.count_claims(read, self.scenes)[0]

  @functools.cached_property
  def lowres(self) -> list[np.ndarray] | None:
    """The real images that a first stage upsamples; None for a base stage."""
    size = self.cascade.cascade.stages[self.stages[0]].lowres_size
    if size is None:
      return None
    read = lambda record: images.to_float(draws.real_image(record, size))
    return [read(record) for record in self.drawn.records]

  @functools.cached_property
  def scenes(self) -> list[Any]:
    """The captions' scenes."""
    return judged.read_scenes(self.drawn.records, self.drawn.numbers)

  @functools.cached_property
  def loss(self) -> dict[str, dict[str, float]]:
    """The losses of each stage, which do not depend on sampling settings."""
    encode, found = self.cascade.part("text"), {}
    with compile_cache.enabled():
      for i in self.stages:
        name = self.cascade.names[i]
        stage, net = self.cascade.cascade.stages[i], self.cascade.part(name)
        found[name] = text_use(stage, net, encode, self.source, self.args.seed)
    return found

  def plan(
    self,
    folder: epath.Path,
    point: tuple[str, Sequence[Sampling]] | None = None,
  ) -> jobs.Job:
    """Plans the images of the config's settings, or of a point of a sweep."""
    count, seed = len(self.drawn.numbers), self.args.seed
    captions = self.drawn.captions
    ends = self.cascade.names[self.stages[0]], self.names[-1]
    return jobs.plan(
      self.cascade,
      captions,
      [Row(i if captions else 0, seed, i) for i in range(count)],
      folder,
      stages=ends,
      image=self.lowres,
      batch_size=self.args.batch_size,
      point=point,
      guidance=self.args.guidance if point is None else None,
      steps=self.args.steps if point is None else None,
      progress=False,
    )

  def measure(self, job: jobs.Job) -> dict[str, Any]:
    """Measures the images of a job, which are in its folder.

    Returns:
      The metrics on the first process; others return parts of them.
    """
    read, found = lambda i: jobs.read_image(job.paths[i]), {}
    if "judge" in self.metrics:
      others = self.scenes[1:] + self.scenes[:1]
      own, other = judged.count_claims(read, self.scenes, others)
      counts = {
        "generated": own,
        "generated, other caption": other,
        "real": self.real_claims,
      }
      found |= {
        "claims_that_hold": {k: judged.shares(n) for k, n in counts.items()},
        "claims_that_hold_95": {
          k: judged.intervals(n) for k, n in counts.items()
        },
      }
    made = ImageSet({"images": lines.checksum(job.ids)}, len(job.ids), read)
    folder = self.outdir / "statistics"
    for metric, extractor in self.extractors.items():
      ours = self.stats(made, extractor, folder, f"{metric} of samples")
      if (real := self.references[metric]) and ours:
        found[metric] = self.distance(metric, ours, real)
    if self.clip:
      found |= self.compare_by_clip(made, folder)
    if "loss" in self.metrics:
      found["loss"] = self.loss
    return found

  def distance(
    self, metric: str, ours: FeatureStats, real: FeatureStats
  ) -> dict[str, Any]:
    """Computes a distance, and all that its value depends on."""
    found = {
      "distance": frechet_distance(ours, real),
      "num_images": [ours.count, real.count],
      "dimension": ours.dim,
      "rank_deficient": ours.rank_deficient or real.rank_deficient,
    }
    if metric == "fid":
      digest = identity(self.args.inception)
      found |= {"resize": self.args.resize, "weights": digest}
    return found

  def compare_by_clip(
    self, made: ImageSet, folder: epath.Path
  ) -> dict[str, Any]:
    """Computes the metrics of CLIP's features, as measure does."""
    ours = self.stats(
      made, self.clip.extractor, folder, "clip of samples", Embeddings
    )
    real = self.real_embeddings if "cmmd" in self.metrics else None
    about = {"model": self.clip.model, "weights": self.clip.digest}
    found = {}
    with shared_errors():
      if "clip" in self.metrics and ours:
        score = clip_score(ours.rows, self.caption_features)
        tokens = self.clip.tokenizer
        found["clip"] = {
          "score": score.score,
          "standard_error": score.standard_error,
          "shuffled": score.shuffled,
          "num_images": score.count,
          "captions_cut": tokens.count_cut(self.drawn.captions),
          "tokens": tokens.length,
          **about,
        }
      if real and ours:
        found["cmmd"] = {
          "distance": cmmd(ours.known, real.known),
          "num_images": [ours.count, real.count],
          **about,
        }
    return found

  def write_sheet(self, job: jobs.Job, path: epath.Path) -> None:
    """Writes the first images on a sheet, with captions in its metadata."""
    shown = [jobs.read_image(path) for path in job.paths[:SHOWN]]
    note = {"captions": json.dumps((self.drawn.captions or ())[:SHOWN])}
    sheet = grid([image[::2, ::2] for image in shown], columns=8)
    write_png(path, sheet, note)

  @property
  def all_extractors(self) -> list[Extractor]:
    """The features of all metrics."""
    by_clip = [self.clip.extractor] if self.clip else []
    return [*self.extractors.values(), *by_clip]

  def line_id(self, job: jobs.Job) -> str:
    """Returns a checksum of all that the metrics of a job depend on."""
    return lines.checksum(
      {
        "images": job.ids,
        "metrics": self.metrics,
        "features": [each.name for each in self.all_extractors],
        "reference": self.reference
        and [self.reference.count, self.reference.name],
        "captions": [self.source.fingerprint(), self.drawn.numbers],
      }
    )

  def about(
    self, config: ConfigDict, point: points.Point, job: jobs.Job
  ) -> dict[str, Any]:
    """Returns the settings of a point, for its line."""
    args = self.args
    parts = [*self.names, *(["text"] if self.cascade.reads_text else [])]
    return {
      "id": self.line_id(job),
      "version": __version__,
      "config_sha256": lines.checksum(build.as_json(config)),
      "weights": {part: build.identity(config, part) for part in parts},
      "trained_steps": trained_steps(config, self.names),
      "dataset": args.dataset,
      "records": self.source.fingerprint(),
      "split": args.split,
      "reference_split": args.reference_split or args.split,
      "captions_sha256": lines.checksum(self.drawn.captions),
      "captions_seed": args.captions_seed,
      "num_images": len(self.drawn.numbers),
      "seed": args.seed,
      "resolution": self.size,
      "stages": self.names,
      "guidance": args.guidance,
      "steps": args.steps,
      "point": dict(point),
    }


def trained_steps(config: Any, names: Sequence[str]) -> dict[str, str]:
  """Reads each stage's training steps, where its weights record them."""
  paths = {name: published.resolve(config[name].weights) for name in names}
  found = {}
  for name, path in paths.items():
    if path.suffix == ".safetensors":
      found[name] = weights.read_metadata(path).get("step", "unknown")
    elif manager.has_checkpoint(str(path)):
      found[name] = str(manager.newest(str(path))[0])
  return found


def changed(
  config: ConfigDict, cascade: Imagen, point: points.Point
) -> ConfigDict:
  """Returns the config of a point.

  Raises:
    ValueError: a key or a value does not fit.
  """
  config = copy.deepcopy(config)
  parts = cascade.cascade
  named = list(zip(parts.names, parts.stages, parts.samplings, strict=True))
  guided = [name for name, _, sampling in named if sampling.guidance != 1]
  upsamples = [name for name, stage, _ in named if stage.lowres_size]
  for name, key, value in points.changes(
    point, cascade.names, guided, upsamples
  ):
    settings = config[name].sampling
    if key not in KINDS:
      if key == "steps" and "timesteps" in settings:
        settings.timesteps = None
      configs.override(config, {f"{name}.sampling.{key}": value})
    elif settings.get(KINDS[key], {}).get("kind") != value:
      with settings.unlocked():  # numbers of another kind do not fit
        settings[KINDS[key]] = ConfigDict({"kind": value})
  return config
