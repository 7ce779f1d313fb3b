"""Trains one stage of the cascade.

  python -m imagen_jax.train --config=configs/shapes16.py --workdir=DIR

Called again with the same workdir it goes on from the newest checkpoint.
"""

import os

# TensorFlow only reads data and writes metrics; this keeps it from telling
# how it would compute.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from clu import metric_writers

from imagen_jax import build
from imagen_jax.data.images import to_uint8
from imagen_jax.data.pipeline import make_batches
from imagen_jax.data.png import enlarge, grid, write_png
from imagen_jax.data.source import load_source
from imagen_jax.runtime import checkpoints, distributed, mesh, program
from imagen_jax.runtime.progress import Progress
from imagen_jax.runtime.sharding import Placement
from imagen_jax.stage import Sampling, Stage, sample_stage
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.training.step import init_state, make_train_step, place_state
from imagen_jax.types import TextEmbedding

read_config = program.define_config("configs/shapes16.py")
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints, metrics and sample grids go."
)

DISTRIBUTED = flags.DEFINE_enum(
  "distributed", "auto", distributed.MODES,
  "How processes find each other: auto (variables, SLURM, TPU pod) or off.",
)  # fmt: skip


def open_batches(
  stage: Stage,
  data: build.Data,
  tokenizer: Tokenizer,
  *,
  split: str,
  batch_size: int,
  start_step: int = 0,
  shard: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of a split for a stage; shard is (index, count) of this host's."""
  return make_batches(
    load_source(data.name, split, data.data_dir),
    size=stage.size,
    lowres_size=stage.lowres_size,
    crop=stage.crop_size,
    tokenize=tokenizer,
    global_batch=batch_size,
    seed=data.seed,
    start_step=start_step,
    shard_index=shard[0],
    shard_count=shard[1],
    cache=data.cache and split == data.split,
  )


def sample_grid(
  stage: Stage,
  sampling: Sampling,
  params: Any,
  text: TextEmbedding,
  batch: dict[str, np.ndarray],
) -> np.ndarray:
  """One row per example: low-res picture (if any), sample, truth.

  From fixed noise, and of the size that is trained on.
  """
  count, side = batch["image"].shape[:2]
  lowres = batch.get("lowres")
  small = dataclasses.replace(
    stage,
    size=side,
    crop_size=None,
    lowres_size=None if lowres is None else lowres.shape[1],
  )
  samples = sample_stage(
    small,
    params,
    jax.random.split(jax.random.key(0), count),
    text,
    lowres,
    sampling=sampling,
  )
  columns = [mesh.to_host(samples), batch["image"]]
  columns = columns if lowres is None else [lowres, *columns]
  shown = max(side, 64)
  cells = [
    enlarge(to_uint8(column[i]), shown)
    for i in range(count)
    for column in columns
  ]
  return grid(cells, columns=len(columns) * max(1, round(math.sqrt(count) / 2)))


def main() -> None:
  config, workdir = read_config(), WORKDIR.value
  if not workdir:
    raise ValueError("--workdir is needed: where checkpoints and metrics go")
  workdir = os.path.expanduser(workdir)
  build.check_keys(config)
  stage, text = build.stage(config.stage), build.text(config.text)
  data, run = build.data(config.data), build.training(config.train)
  sampling = build.sampling(config.sampling)
  stage.check_sampling(sampling)
  optimizer = build.optimizer(config.optimizer)
  tokenizer = build.tokenizer(text)
  distributed.start(DISTRIBUTED.value)
  # The weights by rules, a batch by rows; made in their places.
  devices = mesh.make_mesh(build.mesh(config))
  jax.set_mesh(devices)
  placement, everywhere = Placement(devices), mesh.replicated(devices)
  spread = mesh.batch_sharding(devices, data.batch_size, run.accumulate)
  text_params = placement.put(build.load_text(text))
  key = jax.random.key(run.seed)
  make = lambda: init_state(build.init_net(stage, text, key), optimizer)
  places = place_state(jax.eval_shape(make), optimizer, placement)
  state = jax.jit(make, out_shardings=places)()
  shown = next(open_batches(
    stage, data, tokenizer, split=run.sample_split, batch_size=run.num_samples,
  ))  # fmt: skip
  captions = build.text_encoder(text, text_params).from_ids(
    shown["tokens"], shown["mask"]
  )
  manager = checkpoints.open_checkpoints(workdir, keep=run.keep_checkpoints)
  state = checkpoints.restore(manager, state) or state
  first = int(state.step)

  source = open_batches(
    stage, data, tokenizer,
    split=data.split, batch_size=data.batch_size, start_step=first,
    shard=mesh.host_rows(spread, data.batch_size),
  )  # fmt: skip

  def next_batch():
    return mesh.to_global(next(source), spread, data.batch_size)

  # One program; its compilation is no part of any step's time.
  step_fn = make_train_step(
    stage, text.encoder, optimizer,
    decay=run.ema_decay, seed=run.seed, accumulate=run.accumulate,
    shardings=places.params,
  )  # fmt: skip
  step_fn = jax.jit(
    step_fn, donate_argnums=0, out_shardings=(places, everywhere)
  )
  first_host = jax.process_index() == 0
  progress = Progress("train", run.steps, quiet=not first_host)
  if first:
    progress.say(f"resumed from step {first}")
  if first < run.steps:
    count = sum(x.size for x in jax.tree.leaves(state.params))
    progress.say(f"{count:,} parameters on {devices.size} device(s); compiling")
    begun, batch = time.monotonic(), next_batch()
    step_fn = step_fn.lower(state, text_params, batch).compile()
    progress.say(f"compiled in {time.monotonic() - begun:.1f} s")

  writer = metric_writers.create_default_writer(
    workdir, just_logging=not first_host
  )
  text_config = json.loads(config.to_json_best_effort())
  progress.start(first)
  for step in range(first + 1, run.steps + 1):
    state, metrics = step_fn(state, text_params, batch)
    batch = next_batch()
    last = step == run.steps
    if step % run.log_every == 0 or last:
      metrics = {k: float(v) for k, v in metrics.items()}
      pace = progress.seconds_per_step(step)
      progress.show(step, f"loss {metrics['loss']:.4f}")
      metrics |= {
        "step_seconds": pace,
        "images_per_second": data.batch_size / pace,
      }
      writer.write_scalars(step, metrics)
    keep = step % run.checkpoint_every == 0 or last
    draw = step % run.sample_every == 0 or last
    if keep or draw:
      jax.block_until_ready(state)  # this step is work, what follows is not
    progress.pause()
    if keep:
      checkpoints.save(manager, step, state, text_config)
    if draw:
      picture = sample_grid(stage, sampling, state.ema, captions, shown)
      if first_host:
        path = pathlib.Path(workdir) / "samples" / f"{step:08}.png"
        write_png(path, picture)
        writer.write_images(step, {"samples": picture[None]})
    progress.resume()
  writer.close()
  manager.close()
  progress.say(f"trained to step {int(state.step)}: {workdir}")


if __name__ == "__main__":
  program.run(main)
