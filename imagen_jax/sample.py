"""Samples pictures from prompts with a cascade.

  python -m imagen_jax.sample --config=configs/shapes.py --prompt="a red star"

Writes one PNG per picture and, for several, a grid of them. The settings are
in each PNG's metadata. The same seed gives the same picture. The text encoder
has left memory when the nets come into it. On many hosts all call it alike, and
the first writes.
"""

import time

STARTED = time.monotonic()  # before the imports, which take seconds

# ruff: noqa: E402
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh

from imagen_jax import build
from imagen_jax.cascade import Cascade
from imagen_jax.cli import command_line, program
from imagen_jax.data.images import to_uint8
from imagen_jax.data.png import grid, write_png
from imagen_jax.interop import published
from imagen_jax.parallel.mesh import rows_sharding, to_host
from imagen_jax.parallel.sharding import Placement
from imagen_jax.progress import Progress, Stopwatch
from imagen_jax.text.tokenizer import check_prompts
from imagen_jax.types import TextEmbedding


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes.py")
  command_line.define_distributed(values)
  flags.DEFINE_multi_string("prompt", [], "What to draw; repeatable.", **on)
  flags.DEFINE_string(
    "prompts_file", None, "A UTF-8 text file with one prompt per line.", **on
  )
  flags.DEFINE_integer("num_images", 1, "Pictures per prompt.", **on)
  flags.DEFINE_integer("seed", 0, "Same seed, same pictures.", **on)
  flags.DEFINE_float(
    "guidance", None, "Guidance weight of every stage; 1 is none.", **on
  )
  flags.DEFINE_integer("steps", None, "Sampling steps of every stage.", **on)
  flags.DEFINE_string(
    "weights", None,
    "Where a config's hf:// weights are instead: a folder that holds their "
    "repositories by name, or another owner on the Hub.", **on
  )  # fmt: skip
  flags.DEFINE_string("outdir", "samples", "Where the PNGs go.", **on)


def read_prompts(args: flags.FlagValues) -> list[str]:
  """The prompts of --prompt and --prompts_file, in this order."""
  prompts, name = list(args.prompt), args.prompts_file
  if name:
    try:
      text = pathlib.Path(name).read_text(encoding="utf-8-sig")
      if "\0" in text:
        raise ValueError
    except ValueError as error:
      raise ValueError(f"prompts_file {name} is not UTF-8 text") from error
    except OSError as error:
      raise ValueError(
        f"prompts_file {name} cannot be read: {error.strerror}"
      ) from error
    prompts += [line for line in text.splitlines() if line.strip()]
  if not prompts:
    raise ValueError(
      f"prompts_file {name} has no prompt in it, expected one per line"
      if name
      else "there is no prompt, give --prompt or --prompts_file"
    )
  check_prompts(prompts)
  return prompts


def check_flags(args: flags.FlagValues) -> None:
  """ValueError for a flag that is out of range."""
  command_line.check_at_least(args, "num_images", 1)
  command_line.check_seed(args)
  if args.steps is not None:
    command_line.check_at_least(args, "steps", 1)
  if args.guidance is not None and not math.isfinite(args.guidance):
    raise ValueError(f"--guidance is {args.guidance}, expected a number")


def changes(args: flags.FlagValues) -> dict[str, Any]:
  """The sampling settings that --guidance and --steps change."""
  given = {"guidance": args.guidance, "steps": args.steps}
  return {key: value for key, value in given.items() if value is not None}


def encoded(
  config: Mapping[str, Any], prompts: Sequence[str], devices: Mesh
) -> TextEmbedding:
  """The prompts by a text encoder that is gone afterwards."""
  encode = build.load_encoder(config, Placement(devices))
  with jax.set_mesh(devices):
    return jax.block_until_ready(encode(prompts))


def of_rows(
  text: TextEmbedding, base: jax.Array, which: jax.Array, index: jax.Array
) -> tuple[jax.Array, TextEmbedding]:
  """Keys and prompts of pictures: `index` of the prompt numbered `which`."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(base, index)
  return keys, jax.tree.map(lambda rows: rows[which], text)


def sample_batch(
  cascade: Cascade,
  params: Sequence[Any],
  keys: jax.Array,
  text: TextEmbedding,
  progress: Progress,
  watch: Stopwatch,
) -> np.ndarray:
  """The last stage's pictures, uint8 [B, size, size, 3]; tells of each."""
  progress.say(f"  {' -> '.join(cascade.names)} ...")
  for name, pictures in cascade.sample(params, keys, text):
    size = jax.block_until_ready(pictures).shape[1]
    progress.say(f"  {name}: {size}x{size} in {watch.lap()}")
  return to_uint8(to_host(pictures))


def file_stem(prompt: str) -> str:
  """A prompt's words, "a_red_star"; if that is not all, with a hash of it."""
  words = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60]
  return (
    words if words.replace("_", " ") == prompt else with_hash(words, prompt)
  )


def with_hash(name: str, text: str) -> str:
  """name_1a2b3c4d: different for different texts."""
  return f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("_")


def suffix(args: flags.FlagValues) -> str:
  """What of the settings is in a file's name: "s0", "s0-guidance5.0"."""
  parts = [f"{key}{value}" for key, value in changes(args).items()]
  return "-".join([f"s{args.seed}", *parts])


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  check_flags(args)
  prompts = read_prompts(args)
  config = args.config
  if args.weights is not None and not build.move_weights(config, args.weights):
    raise ValueError(
      f"--weights is {args.weights}, but the config has no hf:// paths"
    )
  cascade = build.cascade(config).with_sampling(**changes(args))
  outdir = epath.Path(args.outdir).expanduser()
  command_line.join_others(args)
  first_host = jax.process_index() == 0
  if first_host:
    program.check_writable("outdir", outdir)
  rows = [(p, i) for p in range(len(prompts)) for i in range(args.num_images)]
  progress = Progress("sample", len(rows), unit="picture", quiet=not first_host)
  progress.say(f"started in {time.monotonic() - STARTED:.1f} s")
  with Stopwatch() as watch:
    sample(config, cascade, prompts, rows, outdir, progress, watch)
  progress.say(f"in all {time.monotonic() - STARTED:.1f} s")


def sample(
  config: Any,
  cascade: Cascade,
  prompts: Sequence[str],
  rows: Sequence[tuple[int, int]],
  outdir: epath.Path,
  progress: Progress,
  watch: Stopwatch,
) -> None:
  """Samples and writes a picture for every (prompt, index) of rows."""
  devices = build.sampling_devices(config)
  for name in cascade.names:  # what cannot be had shows before T5 is read
    published.packaged(config[name].weights)
  text = encoded(config, prompts, devices)
  progress.say(f"  text: {len(prompts)} prompt(s) in {watch.lap()}")
  params = build.load_nets(config, cascade, Placement(devices))

  # One row per picture. Every batch is of one size, the last one filled up,
  # and a picture's key is of its seed and index: neighbours change nothing.
  size = min(len(rows), config.batch_size)
  base = jax.random.key(args.seed)
  draw = jax.jit(of_rows, out_shardings=rows_sharding(devices, size))
  note = {"config": config.to_json_best_effort(), "seed": str(args.seed)}
  note |= {key: str(value) for key, value in changes(args).items()}
  pictures = []
  progress.start(0)
  for start in range(0, len(rows), size):
    batch = rows[start : start + size]
    filled = batch + batch[-1:] * (size - len(batch))
    which, index = (np.array(column) for column in zip(*filled, strict=True))
    with jax.set_mesh(devices):
      keys, drawn = draw(text, base, which, index)
      made = sample_batch(cascade, params, keys, drawn, progress, watch)
    progress.show(start + len(batch))
    if jax.process_index():
      continue
    for (p, i), picture in zip(batch, made, strict=False):
      path = outdir / f"{file_stem(prompts[p])}-{suffix(args)}-{i}.png"
      write_png(path, picture, {"prompt": prompts[p], "index": str(i), **note})
      progress.say(str(path))
      pictures.append(picture)
  if len(pictures) > 1:
    columns = args.num_images if args.num_images > 1 else min(len(rows), 4)
    note["prompt"] = json.dumps(prompts)
    path = outdir / f"{with_hash('grid', note['prompt'])}-{suffix(args)}.png"
    write_png(path, grid(pictures, columns), note)
    progress.say(str(path))


if __name__ == "__main__":
  program.run_and_leave(main, (0,))
