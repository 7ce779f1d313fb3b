"""Trains one stage of the cascade.

  python -m imagen_jax.train --config=configs/shapes16.py --workdir=DIR

Called again with the same workdir it goes on from the newest checkpoint. On
SIGTERM or Ctrl-C it saves and ends with exit code 75. --dry_run shows a batch
and what the run will take, and ends before the first step.
"""

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
from absl import flags
from etils import epath

from imagen_jax import build
from imagen_jax.checkpoints.manager import Checkpoints
from imagen_jax.cli import command_line, program
from imagen_jax.data.feed import Feed, Stopped
from imagen_jax.data.pipeline import BadRecords, bad_sentence
from imagen_jax.data.png import write_png
from imagen_jax.interop import published
from imagen_jax.parallel import mesh
from imagen_jax.parallel.processes import of_all
from imagen_jax.parallel.sharding import Placement, placed
from imagen_jax.progress import Clock, Progress
from imagen_jax.training.batches import open_batches
from imagen_jax.training.grids import batch_grid, sample_grid
from imagen_jax.training.metrics import Metrics, memory
from imagen_jax.training.metrics_window import Window, pace, skipped_sentence
from imagen_jax.training.preemption import SAVED, Preemption
from imagen_jax.training.step import init_state, make_train_step, place_state
from imagen_jax.training.summary import (
  batch_sentence,
  memory_table,
  model_flops,
  parameter_table,
)

T = TypeVar("T")


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes16.py")
  command_line.define_distributed(values)
  flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and sample grids go.", **on
  )
  flags.DEFINE_boolean(
    "allow_config_change", False,
    "Go on from a checkpoint of a config that computes something else.", **on
  )  # fmt: skip
  flags.DEFINE_boolean(
    "dry_run", False,
    "Check all, show a batch and the sizes, and train nothing.", **on
  )  # fmt: skip
  flags.DEFINE_string(
    "profile_steps", None,
    "A:B writes a trace of steps A to B to WORKDIR/trace.", **on
  )  # fmt: skip


def profiled(given: str | None) -> range:
  """The steps of --profile_steps; ValueError if it is not A:B."""
  if given is None:
    return range(0)
  first, _, last = given.partition(":")
  if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
    raise ValueError(
      f"--profile_steps is {given!r}, expected A:B, the first and the last step"
    )
  return range(int(first), int(last) + 1)


def begin(feed: Feed[T]) -> T:
  """The first batch; who is asked to end meanwhile has nothing to save."""
  try:
    return next(feed)
  except Stopped:
    print("asked to end before the first step", flush=True)
    sys.exit(SAVED)


def first_of(batches: Iterator[T], **settings: Any) -> T:
  """The first batch alone, waited for with the settings of a Feed."""
  one = itertools.islice(batches, 1)
  with contextlib.closing(Feed(one, **settings)) as feed:
    return begin(feed)


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  config, workdir = args.config, args.workdir
  if not workdir:
    raise ValueError("--workdir is needed: where checkpoints and metrics go")
  workdir, traced = os.path.expanduser(workdir), profiled(args.profile_steps)
  program.check_bucket("workdir", workdir)
  build.check_keys(config)
  stage, text = build.stage(config.stage), build.text(config.text)
  data, run = build.data(config.data), build.training(config.train)
  sampling = build.sampling(config.sampling)
  stage.check_sampling(sampling)
  optimizer = build.optimizer(config.optimizer)
  learning_rate = build.learning_rate(config.optimizer)
  tokenizer = build.tokenizer(text)
  command_line.join_others(args)
  preemption = Preemption()
  first_host = jax.process_index() == 0
  progress = Progress("train", run.steps, quiet=not first_host)

  # The weights by rules, a batch by rows; made in their places.
  devices = mesh.make_mesh(build.mesh(config))
  jax.set_mesh(devices)
  placement, everywhere = Placement(devices), mesh.replicated(devices)
  spread = mesh.batch_sharding(devices, data.batch_size, run.accumulate)
  text_params = build.load_text(text, placement)
  key = jax.random.key(run.seed)
  net = lambda: build.init_net(stage, text, key)
  make = lambda net: init_state(net, optimizer)
  like = jax.eval_shape(make, jax.eval_shape(net))
  places = place_state(like, optimizer, placement)
  like = placed(like, places)  # a resumed run needs no other state
  make = jax.jit(make, donate_argnums=0, out_shardings=places)
  net = jax.jit(net, out_shardings=places.params)
  waiting = dict(patience=data.patience, say=progress.say, stop=preemption.told)
  shown = first_of(open_batches(
    stage, data, tokenizer, split=run.sample_split, batch_size=run.num_samples,
    bad=BadRecords(data.max_bad_share),
  ), **waiting)  # fmt: skip
  if args.dry_run:
    path = epath.Path(workdir) / "dry_run.png"
    some = first_of(open_batches(
      stage, data, tokenizer, split=data.split, batch_size=data.batch_size,
      rows=range(min(run.num_samples, data.batch_size)),
      bad=BadRecords(data.max_bad_share),
    ), **waiting)  # fmt: skip
    words = tokenizer.decode(some["tokens"], some["mask"])
    if first_host:
      write_png(path, batch_grid(some, words))
    progress.say(parameter_table(like.params) + "\n")
    progress.say(memory_table(like, text_params) + "\n")
    progress.say(batch_sentence(devices, data.batch_size, run.accumulate))
    progress.say(f"the first of it: {path}")
    return
  captions = build.text_encoder(text, text_params).from_ids(
    shown["tokens"], shown["mask"]
  )
  step_fn = make_train_step(
    stage, text.embedder, optimizer,
    decay=run.ema_decay, seed=run.seed, accumulate=run.accumulate,
    shardings=places.params,
  )  # fmt: skip
  step_fn = jax.jit(
    step_fn, donate_argnums=0, out_shardings=(places, everywhere)
  )

  as_json = build.as_json(config)
  with contextlib.ExitStack() as stack:
    stack.enter_context(progress)
    saved = stack.enter_context(Checkpoints(
      workdir, keep=run.keep_checkpoints, keep_every=run.keep_every,
      say=progress.say,
    ))  # fmt: skip
    state = saved.restore(
      like, as_json, allow_config_change=args.allow_config_change
    )
    if state is None and run.start_from:
      state = make(published.load_net(run.start_from, like.params, placement))
    state = state or make(net())
    first = int(state.step)
    bad = BadRecords(data.max_bad_share)
    batches = open_batches(
      stage, data, tokenizer,
      split=data.split, batch_size=data.batch_size, start_step=first,
      rows=mesh.host_rows(spread, data.batch_size), bad=bad,
    )  # fmt: skip
    feed = stack.enter_context(contextlib.closing(Feed(
      (mesh.to_global(batch, spread, data.batch_size) for batch in batches),
      **waiting,
    )))  # fmt: skip
    metrics = stack.enter_context(contextlib.closing(
      Metrics(workdir, first, say=progress.say, quiet=not first_host)
    ))  # fmt: skip
    if first:
      progress.say(f"resumed from step {first}")
    if first < run.steps:
      # One program; its compilation is no part of any step's time.
      count = sum(x.size for x in jax.tree.leaves(state.params))
      progress.say(
        f"{count:,} parameters on {devices.size} device(s); compiling"
      )
      begun, batch = time.monotonic(), begin(feed)
      flops = model_flops(
        stage, text.embedder, state.params, text_params, batch
      )
      step_fn = step_fn.lower(state, text_params, batch).compile()
      progress.say(f"compiled in {time.monotonic() - begun:.1f} s")

    window, clock = Window(run.max_skipped), Clock()
    told, told_bad, asked = first, 0, False
    progress.start(first)
    for step in range(first + 1, run.steps + 1):
      if traced and step == traced.start:
        jax.profiler.start_trace(f"{workdir}/trace")
      with clock.part("compute"):
        state, found = step_fn(state, text_params, batch)
        window.add(step, found)
      asked = preemption.reached(step)
      last = asked or step == run.steps
      if not last:
        try:
          with clock.part("data"):
            batch = next(feed)
        except Stopped:
          last = asked = True
      if traced and step == traced[-1]:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        progress.say(f"traced {args.profile_steps}: {workdir}/trace")
      if step % run.log_every == 0 or last:
        with clock.part("compute"):  # that is still under way
          numbers, skipped = window.take()
          counts, said = of_all((bad.count, bad.read), "; ".join(bad.reasons))
        progress.show(step, f"loss {numbers['loss']:.4f}")
        if skipped:
          progress.say(skipped_sentence(skipped))
        bad_count, read = counts.sum(axis=0).tolist()
        if bad_count > told_bad:
          progress.say(bad_sentence(bad_count, read, said))
        numbers |= pace(clock.take(), step - told, data.batch_size, flops)
        numbers |= memory() | {"bad_records": bad_count}
        updates = step - int(numbers["skipped_steps"])
        numbers["learning_rate"] = float(learning_rate(updates - 1))
        told, told_bad = step, bad_count
        with clock.part("host"):
          metrics.write(step, numbers)
      keep = last or step % run.checkpoint_every == 0
      draw = step % run.sample_every == 0 or step == run.steps
      if keep or draw:
        jax.block_until_ready(state)  # this step is work, what follows is not
      progress.pause()
      if keep:
        with clock.part("checkpoint"):
          saved.save(step, state, as_json)
      if draw:
        picture = sample_grid(stage, sampling, state.ema, captions, shown)
        if first_host:
          path = epath.Path(workdir) / "samples" / f"{step:08}.png"
          try:
            write_png(path, picture)
          except ValueError as error:
            progress.say(f"{error}; training goes on without")
          metrics.write_image(step, "samples", picture)
      progress.resume()
      if asked:
        break
    saved.wait()
  if asked:
    progress.say(f"asked to end: saved step {step}, to go on from: {workdir}")
    sys.exit(SAVED)
  progress.say(f"trained to step {int(state.step)}: {workdir}")


if __name__ == "__main__":
  program.run_and_leave(main, (0, SAVED))
