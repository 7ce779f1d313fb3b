"""Images of a suite of prompts, and their comparison with another model's."""

import json

import jax
from absl import flags
from etils import epath

from imagen_jax import build, files, imagen, jobs
from imagen_jax.cli import command_line
from imagen_jax.evals import comparison, lines, suites
from imagen_jax.parallel.processes import shared_errors
from imagen_jax.progress import print_line
from imagen_jax.request import image_rows


def sample_suite(args: flags.FlagValues, outdir: epath.Path) -> None:
  """Samples a suite's prompts, and compares them with another model's images.

  Raises:
    ValueError: the suite, the config or the other model's images cannot be
      used.
  """
  entries = suites.read(args.suite)
  other = args.against and suites.read_geneval(epath.Path(args.against))
  if other:
    blank = [(entry, []) for entry in entries]
    comparison.pair(blank, other)  # checks the prompts before long work
  config = build.as_cascade(args.config)
  cascade = imagen.load(config)
  build.required_text(config)
  each = args.images_per_prompt
  job = jobs.plan(
    cascade,
    [entry.prompt for entry in entries],
    image_rows(len(entries), num_images=each, seed=args.seed),
    outdir / "images",
    stages=command_line.read_stages(args.stages),
    batch_size=args.batch_size,
    guidance=args.guidance,
    steps=args.steps,
    progress=False,
  )
  jobs.sample_all(job, "images")
  with shared_errors():
    if jax.process_index() > 0:
      return
    about = {
      "suite": args.suite,
      "images_per_prompt": each,
      "seed": args.seed,
      "guidance": args.guidance,
      "steps": args.steps,
      "images_sha256": lines.checksum(job.ids),
      "config": json.loads(config.to_json_best_effort()),
    }
    suites.write_folders(outdir, entries, job.paths, about)
    if not other:
      print_line(f"images of {len(entries)} prompts: {outdir}")
      return
    text = comparison.page(
      suites.read_geneval(outdir),
      other,
      (str(outdir), args.against),
      title=args.suite,
      seed=args.seed,
    )
    files.write(outdir / "comparison.html", text)
    print_line(f"open to vote: {outdir / 'comparison.html'}")
