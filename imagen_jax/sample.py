"""Samples pictures from prompts with a cascade.

  python -m imagen_jax.sample --config=configs/shapes.py --prompt="a red star"

Writes one PNG per picture and, for several, a grid of them. The settings are
in each PNG's metadata. The same seed gives the same picture.
"""

import time

STARTED = time.monotonic()  # before the imports, which take seconds

# ruff: noqa: E402
import json
import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from imagen_jax import build
from imagen_jax.cascade import Cascade
from imagen_jax.data.images import to_uint8
from imagen_jax.data.png import grid, write_png
from imagen_jax.runtime import program
from imagen_jax.runtime.progress import Progress
from imagen_jax.types import TextEmbedding

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw; repeatable.")
PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file", None, "A UTF-8 text file with one prompt per line."
)
NUM_IMAGES = flags.DEFINE_integer("num_images", 1, "Pictures per prompt.")
SEED = flags.DEFINE_integer("seed", 0, "Same seed, same pictures.")
GUIDANCE = flags.DEFINE_float(
  "guidance", None, "Guidance weight of every stage; 1 is none."
)
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps of every stage.")
OUTDIR = flags.DEFINE_string("outdir", "samples", "Where the PNGs go.")


def read_prompts() -> list[str]:
  """The prompts of --prompt and --prompts_file, in this order."""
  prompts = list(PROMPT.value)
  if PROMPTS_FILE.value:
    try:
      text = pathlib.Path(PROMPTS_FILE.value).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
      raise ValueError(
        f"prompts_file {PROMPTS_FILE.value} is not UTF-8 text"
      ) from error
    except OSError as error:
      raise ValueError(
        f"prompts_file {PROMPTS_FILE.value} cannot be read: {error.strerror}"
      ) from error
    prompts += [line for line in text.splitlines() if line.strip()]
  if not prompts:
    raise ValueError("there is no prompt, give --prompt or --prompts_file")
  return prompts


def check_flags() -> None:
  """ValueError for a flag that is out of range."""
  for flag, lowest in ((NUM_IMAGES, 1), (SEED, 0), (STEPS, 1)):
    if flag.value is not None and flag.value < lowest:
      raise ValueError(
        f"--{flag.name} is {flag.value}, expected at least {lowest}"
      )


def writable(outdir: str) -> pathlib.Path:
  """The directory, made if needed; ValueError if no file can be made in it."""
  path = pathlib.Path(outdir).expanduser()
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      return path
  except OSError as error:
    raise ValueError(
      f"outdir {outdir} cannot be written: {error.strerror}"
    ) from error


def overridden(cascade: Cascade) -> Cascade:
  """The cascade with --guidance and --steps, where they are given."""
  changes = {"guidance": GUIDANCE.value, "steps": STEPS.value}
  given = {key: v for key, v in changes.items() if v is not None}
  return cascade.with_sampling(**given)


def sample_batch(
  cascade: Cascade,
  params: Sequence[Any],
  keys: jax.Array,
  text: TextEmbedding,
  progress: Progress,
) -> np.ndarray:
  """Pictures of the last stage, uint8 [B, size, size, 3]; tells of each stage."""
  begun = time.monotonic()
  for name, pictures in cascade.sample(params, keys, text):
    pictures = np.asarray(pictures)
    now = time.monotonic()
    size = pictures.shape[1]
    progress.say(f"  {name}: {size}x{size} in {now - begun:.1f} s")
    begun = now
  return to_uint8(pictures)


def file_name(prompt: str, seed: int, index: int) -> str:
  """ "a_red_star-s0-0.png": the prompt's first words, the seed, the index."""
  words = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60]
  return f"{words or 'prompt'}-s{seed}-{index}.png"


def main() -> None:
  check_flags()
  prompts = read_prompts()
  if CONFIG.value is None:
    raise ValueError("--config is needed, such as configs/shapes.py")
  config = CONFIG.value
  cascade = overridden(build.cascade(config))
  outdir = writable(OUTDIR.value)
  progress = Progress("sample", len(prompts))
  progress.say(f"started in {time.monotonic() - STARTED:.1f} s")

  begun = time.monotonic()
  encode, params = build.load(config, cascade)
  text = encode(prompts)
  progress.say(
    f"text: {len(prompts)} prompt(s) in {time.monotonic() - begun:.1f} s"
  )

  # One row per picture. Every batch is of one size, the last one filled up,
  # and a picture's key is of its seed and index: neighbours change nothing.
  rows = [(p, i) for p in range(len(prompts)) for i in range(NUM_IMAGES.value)]
  size = min(len(rows), config.batch_size)
  base = jax.random.key(SEED.value)
  pictures = []
  for start in range(0, len(rows), size):
    batch = rows[start : start + size]
    batch += batch[-1:] * (size - len(batch))
    which, index = (jnp.asarray(column) for column in zip(*batch, strict=True))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(base, index)
    drawn = TextEmbedding(text.tokens[which], text.mask[which])
    pictures += list(sample_batch(cascade, params, keys, drawn, progress))
    progress.show(min(start + size, len(rows)))
  pictures = pictures[: len(rows)]

  note = {"config": config.to_json_best_effort(), "seed": str(SEED.value)}
  for (p, index), picture in zip(rows, pictures, strict=True):
    path = outdir / file_name(prompts[p], SEED.value, index)
    write_png(
      path, picture, {"prompt": prompts[p], "index": str(index), **note}
    )
    progress.say(str(path))
  if len(pictures) > 1:
    columns = NUM_IMAGES.value if NUM_IMAGES.value > 1 else min(len(rows), 4)
    path = outdir / f"grid-s{SEED.value}.png"
    note["prompt"] = json.dumps(prompts)
    write_png(path, grid(pictures, columns), note)
    progress.say(str(path))
  progress.say(f"in all {time.monotonic() - STARTED:.1f} s")


if __name__ == "__main__":
  program.run(main)
