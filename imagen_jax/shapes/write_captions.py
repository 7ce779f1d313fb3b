r"""Writes captions of captioned_shapes as text, one line per image.

  python -m imagen_jax.shapes.write_captions \
    --split=train --images=20000 --each=8 --output=captions.txt

A line holds --each captions of the image, in random wording, separated by tabs.
With --describe the image's description precedes the captions.
"""

import sys

import numpy as np
from absl import app, flags

from imagen_jax import files
from imagen_jax.shapes import captions, scenes


def define_flags(values: flags.FlagValues) -> None:
  """Defines the program's flags."""
  on = dict(flag_values=values)
  flags.DEFINE_enum("split", "train", scenes.SPLITS, "Whose scenes.", **on)
  flags.DEFINE_integer(
    "images", 20_000, "How many, from the first.", lower_bound=1, **on
  )
  flags.DEFINE_integer(
    "each", 1, "Captions of each image.", lower_bound=1, **on
  )
  flags.DEFINE_float(
    "leave_out",
    0.1,
    "Chance that a caption is silent on sizes, on fills, ...",
    lower_bound=0.0,
    upper_bound=1.0,
    **on,
  )
  flags.DEFINE_bool("describe", False, "Begin with a description.", **on)
  flags.DEFINE_string("output", None, "The text file.", required=True, **on)


def lines(
  split: str, images: int, each: int, leave_out: float, describe: bool = False
):
  """Yields a line of tab-separated captions for each scene 0, 1, ...

  Args:
    split: one of SPLITS.
    images: the number of scenes.
    each: the captions per scene.
    leave_out: as in captions.caption.
    describe: puts the scene's description before the captions.
  """
  for i in range(images):
    rng = np.random.default_rng((scenes.SPLITS.index(split), i))
    scene, _ = scenes.sample_scene(rng, split)
    texts = [captions.description(scene)] if describe else []
    texts += [captions.caption(scene, rng, leave_out) for _ in range(each)]
    yield "\t".join(texts)


def main(argv: list[str]) -> None:
  """Writes the captions to --output.

  Args:
    argv: the program's name, and arguments that are no flags.
  """
  args = flags.FLAGS
  if len(argv) > 1:
    raise app.UsageError(f"{argv[1]!r} is not a flag")
  text = lines(
    args.split, args.images, args.each, args.leave_out, args.describe
  )
  try:
    files.write(args.output, "".join(line + "\n" for line in text))
  except ValueError as error:
    sys.exit(f"write_captions: {error}")


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
