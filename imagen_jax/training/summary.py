"""The cost of a training run: parameters, memory and FLOPs."""

import math
from functools import partial
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from imagen_jax.data.feed import Stopped
from imagen_jax.data.png import write_png
from imagen_jax.parallel.flops import count_flops
from imagen_jax.parallel.mesh import row_ways
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import Embedder, Unconditional
from imagen_jax.training.grids import batch_grid
from imagen_jax.training.job import STOPPED, check_files, open_job
from imagen_jax.training.setup import Run
from imagen_jax.training.step import (
  Batch,
  TrainState,
  batch_loss,
  encode_text,
)


def dry_run(run: Run, workdir: str) -> bool:
  """Writes a batch to workdir/dry_run.png, logs the cost and trains nothing.

  Returns:
    False if the run was asked to end before it was done.
  """
  check_files(run, workdir)
  with open_job(run, workdir) as job:
    data, training, setup = run.data, run.training, job.setup
    rows = range(min(training.num_samples, data.batch_size))
    try:
      if training.sample_every:
        job.first_batch(training.sample_split, training.num_samples)
      batch = job.first_batch(data.split, data.batch_size, rows=rows)
    except Stopped:
      job.progress.log(STOPPED)
      return False
    captions = [""] * len(rows)
    if job.tokenizer:
      captions = job.tokenizer.decode(batch["tokens"], batch["mask"])
    path = epath.Path(workdir) / "dry_run.png"
    if jax.process_index() == 0:
      write_png(path, batch_grid(batch, captions))
    job.progress.log(parameter_table(setup.state.params) + "\n")
    job.progress.log(memory_table(setup.state, job.text_params) + "\n")
    job.progress.log(
      batch_sentence(setup.devices, data.batch_size, training.accumulate)
    )
    job.progress.log(f"the first of it: {path}")
    return True


def parameter_table(params: Any) -> str:
  """Formats the number of parameters of each of a net's modules, and of all."""
  counts = {name: _count(tree) for name, tree in params.items()}
  return _table([*counts.items(), ("parameters", sum(counts.values()))])


def memory_table(state: TrainState, text_params: Any) -> str:
  """Formats the bytes that one device holds throughout, from the shardings.

  The gradient is as large as the parameters. `imagen_jax.compile` reports the
  peak of a step, temporary arrays included.
  """
  parts = {
    "parameters": state.params,
    "average (EMA)": state.ema,
    "optimizer": state.opt_state,
    "text encoder": text_params,
    "gradient": state.params,
  }
  counts = {name: _bytes_per_device(tree) for name, tree in parts.items()}
  rows = [*counts.items(), ("bytes per device", sum(counts.values()))]
  return _table(rows)


def model_flops(
  stage: Stage,
  embedder: Embedder | Unconditional,
  params: Any,
  text_params: Any,
  batch: Batch,
) -> int:
  """Counts the floating-point operations that the model needs in a step.

  They are one pass through the frozen encoder and three through the net, whose
  backward pass takes two. Recomputation that saves memory does not count.

  Returns:
    The count over all devices.
  """
  rows = len(batch["image"])

  draws = jax.eval_shape(lambda: stage.draw(jax.random.key(0), rows))
  encode = partial(encode_text, embedder)
  text = jax.eval_shape(encode, text_params, batch, draws.dropped)
  loss = partial(batch_loss, stage)
  encoding = count_flops(encode, text_params, batch, draws.dropped)
  return encoding + 3 * count_flops(loss, params, draws, batch, text)


def batch_sentence(devices: Mesh, batch_size: int, accumulate: int) -> str:
  """Describes how a batch is sharded over the devices."""
  ways = {name: n for name, n in devices.shape.items() if n > 1}
  count = batch_size // accumulate
  each = count // row_ways(devices)
  over = " x ".join(f"{name} {n}" for name, n in ways.items()) or "1 device"
  return (
    f"batch of {batch_size} = {accumulate} x {count} on {over}: {each} at a "
    "time on a device"
  )


def _count(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes_per_device(tree: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _table(rows: list[tuple[str, int]]) -> str:
  """Formats rows with names left, numbers right and the last row set apart."""
  wide = max(len(name) for name, _ in rows)
  digits = max(len(f"{count:,}") for _, count in rows)
  lines = [f"{name:{wide}}  {count:{digits},}" for name, count in rows]
  return "\n".join([*lines[:-1], "-" * (wide + 2 + digits), lines[-1]])
