r"""Measures how good a cascade's images are, and how well they match captions.

  python -m imagen_jax.evaluate --config=configs/shapes.py --split=test \
    --num_images=200 --outdir=DIR

The config is a cascade's or a stage's. The dataset is any with images. Captions
of the split are drawn by --captions_seed, and one image is sampled for each.
The metrics (docs/evaluation.md):

  frechet_pixels: Frechet distance of images and a full split, by 16x16 pixels.
  fid: the same by Inception's features, FID, given --inception.
  judge: shares of captions' claims that images of captioned_shapes show.
  loss: each stage's loss under an image's own and under another caption.

Writes DIR/SPLIT.json, a line of DIR/evaluations.jsonl, and DIR/SPLIT.png with
captions in its metadata. --sweep measures many sampling settings, one line
each, and plots them. Run the same command again to resume. On many hosts, run
the command on each, with one --outdir that all of them see.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from imagen_jax import build, files, imagen, jobs, scoring
from imagen_jax.cli import command_line, program
from imagen_jax.evals import drawn, lines, points
from imagen_jax.evals.features import (
  PIXEL_SIZE,
  PIXELS,
  RESIZES,
  Extractor,
  inception_extractor,
)
from imagen_jax.evals.statistics import ImageSet
from imagen_jax.imagen import Imagen
from imagen_jax.interop import inception, published
from imagen_jax.interop.identity import identity
from imagen_jax.parallel.processes import from_first, shared_errors
from imagen_jax.progress import Progress, print_line
from imagen_jax.request import stage_numbers
from imagen_jax.scoring import Evaluation

METRICS = ("judge", "loss", "frechet_pixels", "fid")
MOST_REFERENCE = 10**7  # images; a split of more has no end


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes.py")
  command_line.define_compile_cache(values)
  command_line.define_distributed(values)
  flags.DEFINE_string(
    "dataset",
    "captioned_shapes",
    "The dataset's TFDS name, or the folder of a prepared dataset.",
    **on,
  )
  flags.DEFINE_string("split", "test", "Split of the captions.", **on)
  flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "Where the dataset is prepared.", **on
  )
  flags.DEFINE_list(
    "metrics",
    None,
    f"The metrics, of {', '.join(METRICS)}. By default all that the config, the"
    " dataset and --inception allow; a sweep leaves out loss.",
    **on,
  )
  flags.DEFINE_integer(
    "num_images", 200, "The number of captions to sample.", **on
  )
  flags.DEFINE_integer(
    "captions_seed", 0, "Seed of the choice of captions.", **on
  )
  flags.DEFINE_string(
    "reference_split",
    None,
    "Split of the real images of distances, by default --split.",
    **on,
  )
  flags.DEFINE_integer(
    "num_reference",
    None,
    "How many real images of the reference split to take, by default all.",
    **on,
  )
  command_line.define_path(
    values,
    "reference_dir",
    None,
    "The folder of real images' statistics, by default OUTDIR/statistics.",
  )
  command_line.define_path(
    values,
    "inception",
    None,
    "Weights of Inception v3 for FID: classify_image_graph_def.pb, or"
    " safetensors, also on hf://.",
  )
  flags.DEFINE_enum(
    "resize",
    "tf1",
    list(RESIZES),
    "How images are resized for Inception: tf1 is FID's own.",
    **on,
  )
  flags.DEFINE_string(
    "stages",
    None,
    "FIRST:LAST, the stages to run, as in sample. A first stage that upsamples"
    " gets the captions' real images at low resolution.",
    **on,
  )
  flags.DEFINE_integer("batch_size", 16, "Images at a time.", **on)
  flags.DEFINE_integer("seed", 0, "Seed of the samples.", **on)
  flags.DEFINE_float(
    "guidance", None, "Guidance weight of every stage; 1 is no guidance.", **on
  )
  flags.DEFINE_integer("steps", None, "Sampling steps of every stage.", **on)
  flags.DEFINE_multi_string(
    "sweep",
    [],
    "KEY=V1,V2,... evaluates each value of a key of sampling, such as guidance,"
    " aug_level, steps, sampler, threshold or STAGE.KEY; guidance alone takes"
    " the paper's 13 weights. Several sweeps give all combinations.",
    **on,
  )
  flags.DEFINE_boolean(
    "plot", True, "Plot a sweep, which needs the extra plots.", **on
  )
  command_line.define_path(
    values, "outdir", "evaluation", "The folder of the results."
  )


def load_records(
  args: flags.FlagValues, split: str, key: str, *features: str
) -> Sequence[Mapping[str, Any]]:
  """Opens a split of the dataset."""
  # Imported here, as the core does not need the dataset's packages.
  from imagen_jax.data.source import load_source

  return load_source(
    args.dataset, split, args.data_dir, features=features, key=key
  )


def load_captions(
  args: flags.FlagValues, cascade: Imagen
) -> tuple[Sequence[Mapping[str, Any]], bool]:
  """Opens the split of the captions.

  Returns:
    (records, whether they have scenes).

  Raises:
    ValueError: the split lacks a feature that a metric needs.
  """
  features = ("image", "caption") if cascade.reads_text else ("image",)
  load = lambda *more: load_records(
    args, args.split, "--split", *features, *more
  )
  asked = "judge" in (args.metrics or ())
  if cascade.reads_text and (asked or args.metrics is None):
    try:
      return load("scene"), True
    except ValueError:
      if asked:
        raise
  return load(), False


def choose_metrics(
  args: flags.FlagValues, *, text: bool, scenes: bool, size: int
) -> tuple[str, ...]:
  """Returns the metrics of --metrics, or all that can be computed.

  Args:
    args: the flags.
    text: whether the cascade reads text.
    scenes: whether records have scenes.
    size: the images' resolution, in pixels.

  Raises:
    ValueError: a metric is unknown or cannot be computed.
  """
  lacks = {
    "judge": "" if scenes else "a cascade with text and records with scenes",
    "loss": "" if text else "a cascade with text",
    "frechet_pixels": (
      f"images of at least {PIXEL_SIZE} pixels" if size < PIXEL_SIZE else ""
    ),
    "fid": "" if args.inception else "--inception",
  }
  if args.metrics is None:
    left_out = {"loss"} if args.sweep else {}
    return tuple(m for m in METRICS if not lacks[m] and m not in left_out)
  for metric in args.metrics:
    if metric not in METRICS:
      raise ValueError(
        f"--metrics has {metric!r}, expected some of {', '.join(METRICS)}"
      )
    if lacks[metric]:
      raise ValueError(f"--metrics has {metric}, which needs {lacks[metric]}")
  return tuple(m for m in METRICS if m in args.metrics)


def load_extractors(
  args: flags.FlagValues, metrics: Sequence[str]
) -> dict[str, Extractor]:
  """Returns the features of the distances among the metrics.

  Raises:
    ValueError: the weights of Inception cannot be used.
  """
  found = {}
  if "frechet_pixels" in metrics:
    found["frechet_pixels"] = PIXELS
  if "fid" in metrics:
    params = inception.load(published.resolve(args.inception))
    digest = identity(args.inception)
    found["fid"] = inception_extractor(params, digest, args.resize)
  return found


def open_reference(args: flags.FlagValues, size: int) -> ImageSet:
  """Opens the real images that distances are of.

  Raises:
    ValueError: the split cannot be used, or has no end.
  """
  split = args.reference_split or args.split
  source = load_records(args, split, "--reference_split", "image")
  count = min(args.num_reference or len(source), len(source))
  if count > MOST_REFERENCE:
    raise ValueError(
      f"--reference_split is {split!r} of {args.dataset}, which has no end,"
      " expected --num_reference, such as 10000"
    )
  name = {"dataset": source.fingerprint(), "size": size}
  return ImageSet(name, count, drawn.reader(source, size))


def open_evaluation(args: flags.FlagValues, outdir: epath.Path) -> Evaluation:
  """Checks all that an evaluation needs, before anything is sampled.

  Raises:
    ValueError: the config, its weights, the dataset or a metric cannot be used.
  """
  config = build.as_cascade(args.config)
  cascade = imagen.load(config)
  ends = command_line.read_stages(args.stages)
  stages = stage_numbers(cascade.cascade, ends)
  cascade.check([cascade.names[i] for i in stages])
  source, scenes = load_captions(args, cascade)
  size = cascade.cascade.stages[stages[-1]].size
  metrics = choose_metrics(
    args, text=cascade.reads_text, scenes=scenes, size=size
  )
  if args.sweep and args.plot and not {"fid", "frechet_pixels"} & {*metrics}:
    raise ValueError(
      "--metrics has no distance, expected fid or frechet_pixels for the plot"
      " of --sweep, or --noplot"
    )
  extractors = load_extractors(args, metrics)
  return Evaluation(
    args=args,
    config=config,
    cascade=cascade,
    stages=stages,
    metrics=metrics,
    source=source,
    drawn=drawn.draw(
      source,
      args.num_images,
      args.captions_seed,
      captions=cascade.reads_text,
    ),
    reference=open_reference(args, size) if extractors else None,
    extractors=extractors,
    outdir=outdir,
  )


def sample_images(job: jobs.Job, title: str) -> None:
  """Samples the missing images of a job into its folder."""
  quiet = jax.process_index() > 0
  progress = Progress(title, len(job.missing), unit="image", quiet=quiet)
  count = 0
  for more, _ in job.run():
    count += more
    if more:
      progress.show(count)


def evaluate(evaluation: Evaluation) -> None:
  """Samples and measures one point, and writes its results."""
  config, outdir = evaluation.config, evaluation.outdir
  job = evaluation.plan(evaluation.cascade, outdir / "images")
  sample_images(job, "images")
  found = evaluation.measure(job)
  if jax.process_index() > 0:
    return  # the first process writes
  line = evaluation.about(config, {}, job) | found
  lines.add(outdir / lines.FILE, line)
  split = evaluation.args.split
  report = line | {"config": json.loads(config.to_json_best_effort())}
  text = json.dumps(report, indent=2)
  files.write(outdir / f"{split}.json", text + "\n", parents=True)
  evaluation.write_sheet(job, outdir / f"{split}.png")
  print_line(text)


def plan_sweep(
  evaluation: Evaluation,
) -> list[tuple[points.Point, ConfigDict, Imagen]]:
  """Returns the points of --sweep, each with its config and its cascade.

  Raises:
    ValueError: a point cannot be used, before any is sampled.
  """
  args, found = evaluation.args, []
  for point in points.parse(args.sweep):
    for flag in ("guidance", "steps"):
      if args[flag].value is not None and flag in point:
        raise ValueError(f"--{flag} is given beside --sweep={flag}")
    try:
      config = scoring.changed(evaluation.config, evaluation.cascade, point)
      cascade = evaluation.cascade.with_sampling(
        build.cascade(config).samplings,
        {"config": config.to_json_best_effort()},
      )
    except ValueError as error:
      raise ValueError(
        f"--sweep has the point {points.label(point)}: {error}"
      ) from error
    found.append((point, config, cascade))
  return found


def summary(name: str, line: Mapping[str, Any]) -> str:
  """Returns the main numbers of a line for the log."""
  parts = [name]
  for metric in ("fid", "frechet_pixels"):
    if metric in line:
      parts.append(f"{metric} {line[metric]['distance']:.4g}")
  if "claims_that_hold" in line:
    parts.append(f"judge {line['claims_that_hold']['generated']['all']:.3f}")
  return "  ".join(parts)


def sweep(evaluation: Evaluation) -> None:
  """Samples and measures all points of a sweep, except those that are done.

  Each point has a line, a folder of images and a sheet. All points share their
  programs as far as their settings are numbers.
  """
  outdir, split = evaluation.outdir, evaluation.args.split
  results, first = outdir / lines.FILE, jax.process_index() == 0
  todo = plan_sweep(evaluation)
  progress = Progress("sweep", len(todo), unit="point", quiet=not first)
  of_sweep = []
  for number, (point, config, cascade) in enumerate(todo, start=1):
    name = points.label(point)
    job = evaluation.plan(cascade, outdir / "images" / name)
    with shared_errors():
      known = (
        lines.read(results).get(evaluation.line_id(job)) if first else None
      )
    if not from_first(np.array(known is not None)):
      sample_images(job, name)
      known = evaluation.about(config, point, job) | evaluation.measure(job)
      with shared_errors():
        if first:
          lines.add(results, known)
          evaluation.write_sheet(job, outdir / f"{split}-{name}.png")
    of_sweep.append(known)
    progress.show(number, summary(name, known) if first else "")
  if first and evaluation.args.plot:
    # Imported here: matplotlib is of the extra `plots`.
    from imagen_jax.evals import plots

    plots.pareto(of_sweep, outdir / f"{split}-sweep.png")


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Evaluates a cascade by the parsed flags."""
  command_line.check_at_least(args, "num_images", 2)
  command_line.check_at_least(args, "batch_size", 1)
  if args.num_reference is not None:
    command_line.check_at_least(args, "num_reference", 2)
  command_line.check_at_least(args, "captions_seed", 0)
  command_line.check_seed(args)
  points.parse(args.sweep)
  if args.sweep and args.plot:
    importlib.import_module("imagen_jax.evals.plots")  # before long work
  outdir = epath.Path(args.outdir)
  command_line.join_others(args)
  with shared_errors():
    program.check_writable("outdir", outdir)
  evaluation = open_evaluation(args, outdir)
  if args.sweep:
    plan_sweep(evaluation)  # checks all points
  with shared_errors():
    if jax.process_index() == 0:
      about = {"dataset": args.dataset, "split": args.split}
      evaluation.drawn.write(outdir / f"{args.split}-captions.json", about)
  if args.sweep:
    sweep(evaluation)
  else:
    evaluate(evaluation)


if __name__ == "__main__":
  program.run_and_leave(main, (0,))
