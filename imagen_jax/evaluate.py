r"""Measures how well a cascade's images match captions of captioned_shapes.

  python -m imagen_jax.evaluate --config=configs/shapes.py --split=test \
    --num_images=200 --outdir=DIR

One image is sampled per caption. The judge of shapes/ counts which claims of
the caption's scene the image shows. For comparison, it counts claims of another
caption's scene, and the real image's claims. Shares have Wilson intervals of
95 %. The Frechet distance of generated and real images is that of pixels, as
Inception knows no drawings (docs/evaluation.md). For each stage, the loss under
an image's own caption is compared with the loss under another caption. Writes
DIR/SPLIT.json, and DIR/SPLIT.png with captions in its metadata. On many hosts,
run the command on each, with one --outdir that all of them see.
"""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from imagen_jax import build, files, imagen, jobs
from imagen_jax.cli import command_line, program
from imagen_jax.data import images as image_data
from imagen_jax.data.png import grid, write_png
from imagen_jax.evals.features import pixel_features
from imagen_jax.evals.frechet import FeatureStats, frechet_distance
from imagen_jax.evals.intervals import wilson
from imagen_jax.evals.text_use import caption_losses
from imagen_jax.imagen import Imagen
from imagen_jax.interop import published, weights
from imagen_jax.parallel import compile_cache, compiler
from imagen_jax.parallel.mesh import to_host
from imagen_jax.parallel.processes import shared_errors
from imagen_jax.progress import Progress, print_line
from imagen_jax.request import Row
from imagen_jax.shapes.judge import judge, share, tally
from imagen_jax.shapes.scenes import Scene, from_json

LOSS_BATCHES = 4  # of 64 examples, for the loss under right and wrong captions


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes.py")
  command_line.define_compile_cache(values)
  command_line.define_distributed(values)
  flags.DEFINE_string(
    "dataset",
    "captioned_shapes",
    "The dataset, or captioned_shapes/tiny.",
    **on,
  )
  flags.DEFINE_string("split", "test", "Split of the dataset.", **on)
  flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "Where the dataset is prepared.", **on
  )
  flags.DEFINE_integer(
    "num_images", 200, "The number of captions to sample.", **on
  )
  flags.DEFINE_integer("batch_size", 16, "Images at a time.", **on)
  flags.DEFINE_integer("seed", 0, "Seed of the samples.", **on)
  flags.DEFINE_float(
    "guidance", None, "Guidance weight of every stage; 1 is no guidance.", **on
  )
  flags.DEFINE_integer("steps", None, "Sampling steps of every stage.", **on)
  command_line.define_path(
    values, "outdir", "evaluation", "The folder of the results."
  )


def draw(
  cascade: Imagen,
  captions: list[str],
  folder: epath.Path,
  *,
  seed: int,
  **options: Any,
) -> list[np.ndarray]:
  """Samples one uint8 image per caption: image i of the seed for caption i.

  The first of several processes returns them. The others return none.

  Each image is written as a PNG to the folder. Finished images in the folder
  are read instead, so an interrupted evaluation resumes.

  Args:
    cascade: the cascade.
    captions: the prompts.
    folder: the folder of the PNGs.
    seed: of the samples.
    **options: as in jobs.plan.
  """
  rows = [Row(i, seed, i) for i in range(len(captions))]
  job = jobs.plan(cascade, captions, rows, folder, progress=False, **options)
  quiet = jax.process_index() > 0
  progress = Progress("images", len(job.missing), quiet=quiet)
  count = 0
  for more, _ in job.run():
    count += more
    if more:
      progress.show(count)
  return [] if quiet else [jobs.read_image(path) for path in job.paths]


def count_claims(
  images: list[np.ndarray], scenes: list[Scene]
) -> collections.Counter:
  """Counts the claims of scenes by (kind, whether the image shows it)."""
  counts = collections.Counter()
  for image, scene in zip(images, scenes, strict=True):
    counts += tally(judge(image, scene))
  return counts


def shares(counts: collections.Counter) -> dict[str, float]:
  """Computes the share of claims that hold, by kind and over all kinds."""
  return {kind: round(value, 4) for kind, value in share(counts).items()}


def intervals(counts: collections.Counter) -> dict[str, list[float]]:
  """Computes the 95 % interval of each of the shares."""
  found = {}
  for kind in share(counts):
    of_kind = {key: n for key, n in counts.items() if kind in (key[0], "all")}
    held = sum(n for (_, holds), n in of_kind.items() if holds)
    found[kind] = [round(v, 4) for v in wilson(held, sum(of_kind.values()))]
  return found


def pixel_distance(
  images: list[np.ndarray], real: list[np.ndarray]
) -> dict[str, Any]:
  """Computes the Frechet distance of the images' pixels, and what it is of."""
  moments = []
  for group in (images, real):
    features = [pixel_features(image[None]) for image in group]
    moments.append(FeatureStats.of(np.concatenate(features)))
  return {
    "distance": frechet_distance(*moments),
    "num_images": [stats.count for stats in moments],
    "dimension": moments[0].dim,
    "rank_deficient": any(stats.rank_deficient for stats in moments),
  }


def read_scenes(records: Sequence[Mapping[str, Any]]) -> list[Scene]:
  """Reads the scenes of records; ValueError names a record without a scene."""
  scenes = []
  for number, record in enumerate(records):
    try:
      scenes.append(from_json(record["scene"])[0])
    except ValueError as error:
      raise ValueError(f"record {number}: {error}") from error
  return scenes


def text_use(
  cascade: Imagen, source: Any, seed: int
) -> dict[str, dict[str, float]]:
  """Computes each stage's mean loss under images' own and other captions.

  Returns:
    {stage: {"own_caption", "other_caption": mean losses, "own_lower": the share
    of images whose own caption gives the lower loss}}.
  """
  from imagen_jax.data.pipeline import make_batches

  encode, result = cascade.part("text"), {}
  for name, stage in zip(cascade.names, cascade.cascade.stages, strict=True):
    net = cascade.part(name)
    batches = make_batches(
      source,
      size=stage.size,
      lowres_size=stage.lowres_size,
      crop=stage.crop_size,
      tokenize=encode.tokenizer,
      global_batch=64,
      seed=seed,
    )
    loss = compiler.jit(caption_losses, static_argnums=0)
    own, other = [], []
    for i in range(LOSS_BATCHES):
      batch = next(batches)
      text = encode.from_ids(batch["tokens"], batch["mask"])
      key = jax.random.fold_in(jax.random.key(seed), i)
      pair = loss(stage, net, key, batch["image"], text, batch.get("lowres"))
      for losses, found in zip((own, other), to_host(pair), strict=True):
        losses.append(found)
    own, other = np.concatenate(own), np.concatenate(other)
    result[name] = {
      "own_caption": float(own.mean()),
      "other_caption": float(other.mean()),
      "own_lower": float((own < other).mean()),
    }
  return result


def trained_steps(config: Any, names: tuple[str, ...]) -> dict[str, str]:
  """Reads each stage's training steps from the metadata of its weights file."""
  paths = {name: published.resolve(config[name].weights) for name in names}
  return {
    name: weights.read_metadata(path).get("step", "unknown")
    for name, path in paths.items()
    if path.suffix == ".safetensors"
  }


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Evaluates a cascade by the parsed flags."""
  # Imported here, as the core does not need the dataset's packages.
  from imagen_jax.data.source import load_source

  config = args.config
  command_line.check_at_least(args, "num_images", 2)
  command_line.check_at_least(args, "batch_size", 1)
  command_line.check_seed(args)
  outdir = epath.Path(args.outdir)
  command_line.join_others(args)
  with shared_errors():
    program.check_writable("outdir", outdir)
  cascade = imagen.load(config)
  build.required_text(config)
  cascade.check(cascade.names)  # before the dataset is prepared
  source = load_source(
    args.dataset,
    args.split,
    args.data_dir,
    features=("image", "caption", "scene"),
    key="--split",
  )
  count = min(args.num_images, len(source))
  records = [source[i] for i in range(count)]
  captions = [record["caption"] for record in records]
  scenes = read_scenes(records)
  others = scenes[1:] + scenes[:1]
  real = [image_data.decode(record["image"]) for record in records]
  images = draw(
    cascade,
    captions,
    outdir / "images",
    seed=args.seed,
    batch_size=args.batch_size,
    guidance=args.guidance,
    steps=args.steps,
  )
  with compile_cache.enabled():
    loss = text_use(cascade, source, args.seed)
  if jax.process_index() > 0:
    return  # the first process judges the images
  counts = {
    "generated": count_claims(images, scenes),
    "generated, other caption": count_claims(images, others),
    "real": count_claims(real, scenes),
  }
  report = {
    "split": args.split,
    "num_images": count,
    "seed": args.seed,
    "guidance": args.guidance,
    "steps": args.steps,
    "config": json.loads(config.to_json_best_effort()),
    "trained_steps": trained_steps(config, cascade.names),
    "claims_that_hold": {name: shares(n) for name, n in counts.items()},
    "claims_that_hold_95": {name: intervals(n) for name, n in counts.items()},
    "frechet_pixels": pixel_distance(images, real),
    "loss": loss,
  }
  text = json.dumps(report, indent=2)
  files.write(outdir / f"{args.split}.json", text + "\n", parents=True)
  shown = min(count, 32)
  note = {"captions": json.dumps(captions[:shown])}
  sheet = grid([image[::2, ::2] for image in images[:shown]], columns=8)
  write_png(outdir / f"{args.split}.png", sheet, note)
  print_line(text)


if __name__ == "__main__":
  program.run_and_leave(main, (0,))
