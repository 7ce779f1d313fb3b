r"""Measures how good a cascade's images are, and how well they match captions.

  python -m imagen_jax.evaluate --config=configs/shapes.py --split=test \
    --num_images=200 --outdir=DIR

The config is a cascade's or a stage's. The dataset is any with images. Captions
of the split are drawn by --captions_seed, and one image is sampled for each.
The metrics (docs/evaluation.md):

  frechet_pixels: Frechet distance of images and a full split, by 16x16 pixels.
  fid: the same by Inception's features, FID, given --inception.
  clip: CLIP score, the mean cosine of images and captions, given --clip.
  cmmd: a distance of images and a full split by CLIP's features.
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
from absl import flags
from etils import epath

from imagen_jax import build, files, imagen, jobs, metrics, suite, sweep
from imagen_jax.cli import command_line, program
from imagen_jax.data.captions import check_template
from imagen_jax.evals import drawn, lines, points
from imagen_jax.evals.features import RESIZES
from imagen_jax.evals.statistics import ImageSet
from imagen_jax.imagen import Imagen
from imagen_jax.parallel.processes import shared_errors
from imagen_jax.progress import print_line
from imagen_jax.request import stage_numbers
from imagen_jax.scoring import Evaluation

MOST_REFERENCE = 10**7  # images; a split of more has no end


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes.py")
  command_line.define_compile_cache(values)
  command_line.define_distributed(values)
  command_line.define_path(
    values,
    "dataset",
    "captioned_shapes",
    "The dataset's TFDS name, or the folder of a prepared dataset.",
  )
  flags.DEFINE_string("split", "test", "Split of the captions.", **on)
  flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "Where the dataset is prepared.", **on
  )
  flags.DEFINE_string("image", "image", "The feature of the image.", **on)
  flags.DEFINE_string(
    "caption", "caption", "The feature of the caption: captions/text.", **on
  )
  flags.DEFINE_string(
    "template", "{}", "The caption, with {} for the feature's text.", **on
  )
  define_metrics(values)
  define_sampling(values)
  define_points(values)
  command_line.define_path(
    values, "outdir", "evaluation", "The folder of the results."
  )


def define_metrics(values: flags.FlagValues) -> None:
  """Defines the flags of what is measured."""
  on = dict(flag_values=values)
  flags.DEFINE_list(
    "metrics",
    None,
    f"The metrics, of {', '.join(metrics.METRICS)}. By default all that the"
    " config, the dataset, --inception and --clip allow; a sweep leaves out"
    " loss.",
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
  command_line.define_path(
    values,
    "clip",
    None,
    "The folder of a full CLIP in Hugging Face's format, also on hf://:"
    " config.json, model.safetensors and tokenizer.json.",
  )
  flags.DEFINE_enum(
    "resize",
    "tf1",
    list(RESIZES),
    "How images are resized for Inception: tf1 is FID's own.",
    **on,
  )


def define_sampling(values: flags.FlagValues) -> None:
  """Defines the flags of how images are sampled."""
  on = dict(flag_values=values)
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


def define_points(values: flags.FlagValues) -> None:
  """Defines the flags of suites and sweeps."""
  on = dict(flag_values=values)
  command_line.define_path(
    values,
    "suite",
    None,
    "Samples a suite of prompts instead of a dataset's captions: shapes, or a"
    " .tsv or .csv file of categories and prompts.",
  )
  flags.DEFINE_integer(
    "images_per_prompt", 8, "Images of a suite's prompt.", **on
  )
  command_line.define_path(
    values,
    "against",
    None,
    "Another model's --outdir of the suite, or a folder of GenEval's layout:"
    " writes OUTDIR/comparison.html, a page to vote on.",
  )
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


def load_records(
  args: flags.FlagValues, split: str, key: str, *features: str
) -> Sequence[Mapping[str, Any]]:
  """Opens a split of the dataset."""
  # Imported here, as the core does not need the dataset's packages.
  from imagen_jax.data.source import load_source

  return load_source(
    args.dataset,
    split,
    args.data_dir,
    features=features,
    paths={"image": args.image, "caption": args.caption},
    template=args.template,
    key=key,
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
  name = {"dataset": source.fingerprint(), "image": args.image, "size": size}
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
  chosen = metrics.choose_metrics(
    args, text=cascade.reads_text, scenes=scenes, size=size
  )
  if args.sweep and args.plot and not {"fid", "frechet_pixels"} & {*chosen}:
    raise ValueError(
      "--metrics has no distance, expected fid or frechet_pixels for the plot"
      " of --sweep, or --noplot"
    )
  extractors = metrics.load_extractors(args, chosen)
  by_clip = metrics.load_clip(args, chosen)
  reference = None
  if extractors or "cmmd" in chosen:
    reference = open_reference(args, size)
  if "cmmd" in chosen:
    metrics.check_cmmd(args.num_images, reference.count)
  return Evaluation(
    args=args,
    config=config,
    cascade=cascade,
    stages=stages,
    metrics=chosen,
    source=source,
    drawn=drawn.draw(
      source,
      args.num_images,
      args.captions_seed,
      captions=cascade.reads_text,
    ),
    reference=reference,
    extractors=extractors,
    clip=by_clip,
    outdir=outdir,
  )


def evaluate(evaluation: Evaluation) -> None:
  """Samples and measures one point, and writes its results."""
  config, outdir = evaluation.config, evaluation.outdir
  job = evaluation.plan(outdir / "images")
  jobs.sample_all(job, "images")
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


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Evaluates a cascade by the parsed flags."""
  command_line.check_at_least(args, "num_images", 2)
  for flag in ("batch_size", "images_per_prompt"):
    command_line.check_at_least(args, flag, 1)
  for flag in ("sweep", "metrics"):
    if args.suite and args[flag].value:
      raise ValueError(
        f"--{flag} is given beside --suite, expected one of both"
      )
  if args.against and not args.suite:
    raise ValueError("--against is given without --suite, which it compares")
  if args.num_reference is not None:
    command_line.check_at_least(args, "num_reference", 2)
  command_line.check_at_least(args, "captions_seed", 0)
  command_line.check_seed(args)
  check_template("--template", args.template)
  points.parse(args.sweep)
  if args.sweep and args.plot:
    importlib.import_module("matplotlib")  # before long work
  outdir = epath.Path(args.outdir)
  command_line.join_others(args)
  with shared_errors():
    program.check_writable("outdir", outdir)
  if args.suite:
    suite.sample_suite(args, outdir)
    return
  evaluation = open_evaluation(args, outdir)
  if args.sweep:
    sweep.plan(evaluation)  # checks all points
  with shared_errors():
    if jax.process_index() == 0:
      about = {"dataset": args.dataset, "split": args.split}
      evaluation.drawn.write(outdir / f"{args.split}-captions.json", about)
  if args.sweep:
    sweep.run(evaluation)
  else:
    evaluate(evaluation)


if __name__ == "__main__":
  program.run_and_leave(main, (0,))
