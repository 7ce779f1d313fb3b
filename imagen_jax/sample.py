"""Samples images from prompts with a cascade.

  python -m imagen_jax.sample --config=shapes --prompt="a red star"

Writes one PNG per image and, for several images, sheets of them. Each PNG's
metadata holds the settings. Its name ends with a checksum of everything that
determines the image. The same seed gives the same image. Run the same command
again to resume: finished images stay. The text encoder leaves memory before
the nets are used. On many hosts, run the command on each, with one --outdir
that all of them see. Each host writes its own images (docs/sampling.md).
"""

import time

STARTED = time.monotonic()  # before the imports, which take seconds

# ruff: noqa: E402

import jax
from absl import flags
from etils import epath

from imagen_jax import files, imagen, jobs
from imagen_jax.cli import command_line, program
from imagen_jax.parallel.processes import shared_errors
from imagen_jax.progress import Progress
from imagen_jax.request import image_rows
from imagen_jax.text.tokenizer import check_prompts


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes.py")
  command_line.define_compile_cache(values)
  command_line.define_distributed(values)
  flags.DEFINE_multi_string(
    "prompt", [], "The text of an image; repeatable.", **on
  )
  command_line.define_path(
    values, "prompts_file", None, "A UTF-8 text file with one prompt per line."
  )
  flags.DEFINE_integer("num_images", 1, "Images per prompt.", **on)
  flags.DEFINE_integer("seed", 0, "The seed of the images.", **on)
  flags.DEFINE_multi_integer(
    "index", None, "Makes only this image of each prompt, of 0, 1, ...; "
    "repeatable.", **on
  )  # fmt: skip
  flags.DEFINE_float(
    "guidance", None, "Guidance weight of every stage; 1 is no guidance.", **on
  )
  flags.DEFINE_integer("steps", None, "Sampling steps of every stage.", **on)
  flags.DEFINE_string(
    "negative_prompt",
    None,
    "The negative prompt: guidance leads away from it.",
    **on,
  )
  flags.DEFINE_string(
    "stages", None, "FIRST:LAST, the stages to run, either end may be left "
    "out: ':base64' stops at 64x64, 'sr256:' upsamples --image.", **on
  )  # fmt: skip
  command_line.define_path(values, "image", None, "An image file to upsample.")
  flags.DEFINE_integer(
    "batch_size", None, "Images at a time, by default the config's.", **on
  )
  flags.DEFINE_boolean(
    "offload", False, "Keep only the part that runs in memory.", **on
  )
  command_line.define_path(
    values, "weights", None,
    "Where a config's hf:// weights are instead: a folder that holds their "
    "repositories by name, or another owner on the Hub.",
  )  # fmt: skip
  command_line.define_path(
    values, "outdir", "samples", "The folder of the PNG files."
  )


def read_prompts(args: flags.FlagValues) -> list[str] | None:
  """Returns the prompts of --prompt and --prompts_file, in this order.

  None is for a cascade without text.

  Raises:
    ValueError: there is no prompt, a file cannot be read, or a prompt is not
      valid text.
  """
  prompts, name = list(args.prompt), args.prompts_file
  if name:
    prompts += filter(None, files.read_lines(name, "prompts_file"))
  if name and not prompts:
    raise ValueError(
      f"prompts_file {name} has no prompt in it, expected one per line"
    )
  if not prompts and args.config.get("text"):
    raise ValueError("there is no prompt, give --prompt or --prompts_file")
  if prompts:
    check_prompts(prompts)
  return prompts or None


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Samples images and writes them."""
  prompts = read_prompts(args)
  rows = image_rows(
    len(prompts or [None]),
    num_images=args.num_images,
    seed=args.seed,
    index=args.index,
  )
  outdir = epath.Path(args.outdir)
  command_line.join_others(args)
  first_host = jax.process_index() == 0
  with shared_errors():
    program.check_writable("outdir", outdir)
  cascade = imagen.load(args.config, weights=args.weights, offload=args.offload)
  job = jobs.plan(
    cascade,
    prompts,
    rows,
    outdir,
    guidance=args.guidance,
    steps=args.steps,
    negative_prompt=args.negative_prompt,
    stages=command_line.read_stages(args.stages),
    image=args.image,
    batch_size=args.batch_size,
  )
  total = len(job.missing)
  progress = Progress("sample", total, unit="image", quiet=not first_host)
  progress.log(f"started in {time.monotonic() - STARTED:.1f} s")
  if total < len(rows):
    progress.log(f"{len(rows) - total} of {len(rows)} image(s) are finished")

  count, begun = 0, time.monotonic()
  for more, paths in job.run():
    count += more
    if more:
      progress.show(count, pace(count, time.monotonic() - begun))
    for path in paths:
      progress.log(str(path))
  speed = pace(total, time.monotonic() - begun)
  if len(rows) > 1:
    for path in job.write_sheets():
      progress.log(str(path))
  seconds = time.monotonic() - STARTED
  progress.log(f"in all {seconds:.1f} s, {total} image(s) at {speed}")


def pace(count: int, seconds: float) -> str:
  """Formats the images per second, compilation included."""
  return f"{count / max(seconds, 1e-3):.3g} images/s"


if __name__ == "__main__":
  program.run_and_leave(main, (0,))
