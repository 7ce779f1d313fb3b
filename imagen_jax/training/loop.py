"""The training loop: from the newest checkpoint, if any, to the last step."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.profiler import StepTraceAnnotation

from imagen_jax.checkpoints.manager import Checkpoints
from imagen_jax.data.feed import Feed, Stopped
from imagen_jax.interop import published
from imagen_jax.parallel import compile_cache, mesh
from imagen_jax.progress import Progress
from imagen_jax.training.batches import fingerprints
from imagen_jax.training.evaluation import (
  BEST,
  Best,
  read_evaluator,
)
from imagen_jax.training.goodput import Goodput
from imagen_jax.training.held_out import read_held_out
from imagen_jax.training.job import STOPPED, Job, check_files, open_job
from imagen_jax.training.lock import Writer, one_writer
from imagen_jax.training.log import Callback, Log
from imagen_jax.training.metrics import Metrics
from imagen_jax.training.outputs import Config, Outputs, Trace, read_samples
from imagen_jax.training.setup import Run
from imagen_jax.training.step import Batch, TrainState
from imagen_jax.training.summary import model_flops
from imagen_jax.training.watchdog import Watchdog

StepFn = Callable[[TrainState, Any, Batch], tuple[TrainState, Any]]


@dataclasses.dataclass(frozen=True)
class Trained:
  """Describes how a run ended.

  Attributes:
    step: the last step, which is saved; 0 if the run was interrupted before it
      had read a checkpoint.
    workdir: the folder of checkpoints, metrics and sample grids.
    interrupted: True if the run was asked to end before its last step. Train
      again with the same workdir to resume.
  """

  step: int
  workdir: str
  interrupted: bool = False


def train(
  run: Run,
  workdir: str,
  config: Config,
  *,
  complete: Callable[[Config], Config],
  callback: Callback | None = None,
  allow_config_change: bool = False,
  profile_steps: tuple[int, int] | None = None,
  on_hang: Callable[[], None] = lambda: None,
) -> Trained:
  """Trains a run to its last step, or until it is asked to end.

  Args:
    run: the run's settings.
    workdir: the folder of checkpoints, metrics and sample grids.
    config: the config that checkpoints keep.
    complete: fills in the keys that an older checkpoint's config lacks.
    callback: as for imagen.train.
    allow_config_change: as for imagen.train.
    profile_steps: as for imagen.train.
    on_hang: as for imagen.train.

  Returns:
    How the run ended.

  Raises:
    ValueError: data, weights or checkpoints cannot be used; another run writes
      to the workdir; or the last checkpoint cannot be saved.
  """
  goodput = Goodput()
  check_files(run, workdir)
  config = {**config, "dataset": fingerprints(run.data)}
  with (
    hold_workdir(workdir) as writer,
    compile_cache.enabled(workdir),
    open_job(run, workdir) as job,
  ):
    step, interrupted = 0, False
    try:
      with contextlib.ExitStack() as stack:
        # 1. Set up: read the examples of sample grids, open checkpoints.
        samples, held_out = read_samples(job), read_held_out(job)
        best = open_best(job, stack)
        saved = stack.enter_context(open_checkpoints(job))

        # 2. Restore or initialise the state; the data continues at its step.
        with goodput.part("restore"):
          state = saved.restore(
            job.setup.state, config,
            complete=complete, allow_config_change=allow_config_change,
          ) or initial_state(job)  # fmt: skip
          step = int(state.step)
        log = open_log(job, step, callback, goodput, stack)
        trace = stack.enter_context(Trace(job, profile_steps))
        if step < run.training.steps:
          feed = open_feed(job, step, log, stack)

          # 3. Compile all programs.
          update, batch = compile_step(job, state, feed, log)
          watchdog = stack.enter_context(open_watchdog(run, on_hang))
          out = Outputs(
            job, writer, log, trace, saved, config, samples, watchdog,
            held_out, best,
          ).compile(state)  # fmt: skip
          log.write_goodput(step)

          # 4. Train, see train_steps.
          state, interrupted = train_steps(job, state, update, batch, feed, out)
          step = int(state.step)
          with log.clock.part("checkpoint"):
            saved.wait()  # until the newest checkpoint is saved
          job.progress.log(log.finish(step))
    except Stopped:
      job.progress.log(STOPPED)
      return Trained(step, workdir, interrupted=True)
    job.progress.log(end_sentence(step, workdir, interrupted))
    return Trained(step, workdir, interrupted)


def end_sentence(step: int, workdir: str, interrupted: bool) -> str:
  """States how a run ended."""
  if interrupted:
    return (
      f"asked to end: saved step {step}; run the same command again to resume "
      f"{workdir}"
    )
  return f"trained to step {step}: {workdir}"


def hold_workdir(workdir: str) -> contextlib.AbstractContextManager[Writer]:
  """Keeps other runs out of the workdir, before anything is read or made."""
  progress = Progress("train", 0, quiet=jax.process_index() > 0)
  return one_writer(workdir, progress.log)


def open_checkpoints(job: Job) -> Checkpoints:
  """Opens the folder of checkpoints, which it makes; a with-block closes it."""
  training = job.run.training
  return Checkpoints(
    job.workdir,
    keep=training.keep_checkpoints,
    keep_every=training.keep_every,
    log=job.progress.log,
  )


def open_best(job: Job, stack: contextlib.ExitStack) -> Best | None:
  """Opens the folder of the best checkpoint, which the exit stack closes.

  Returns:
    None without train.evaluate_every.
  """
  evaluator = read_evaluator(job)
  if evaluator is None:
    return None
  saved = Checkpoints(f"{job.workdir}/{BEST}", keep=1, log=job.progress.log)
  saved.clean()  # of saves that kill -9 ended
  return Best(evaluator, stack.enter_context(saved))


def initial_state(job: Job) -> TrainState:
  """Makes the first state, from train.start_from's weights if it is set."""
  setup, path = job.setup, job.run.training.start_from
  if not path:
    return setup.initialise()
  like = setup.state.params
  return setup.start_from(published.load_net(path, like, setup.placement))


def open_log(
  job: Job,
  first: int,
  callback: Callback | None,
  goodput: Goodput,
  stack: contextlib.ExitStack,
) -> Log:
  """Opens the files of metrics, which the exit stack closes."""
  quiet = jax.process_index() > 0
  if not quiet:
    goodput.resume(job.workdir, first, job.progress.log)
  if first:
    job.progress.log(f"resumed from step {first}")
  metrics = Metrics(job.workdir, first, log=job.progress.log, quiet=quiet)
  stack.enter_context(contextlib.closing(metrics))
  callback = None if quiet else callback
  return Log(job.run, metrics, first, job.progress, callback, goodput=goodput)


def open_watchdog(run: Run, on_hang: Callable[[], None]) -> Watchdog:
  """Watches for hangs; waiting for data ends by data.patience before."""
  after = run.training.hang_after
  return Watchdog(None if after is None else run.data.patience + after, on_hang)


def open_feed(
  job: Job, first: int, log: Log, stack: contextlib.ExitStack
) -> Feed[Batch]:
  """Reads this host's examples ahead, sharded; the exit stack closes that."""
  data, rows = job.run.data, job.setup.rows
  batches = job.batches(
    data.split, data.batch_size, start_step=first, bad=log.bad,
    steps=job.run.training.steps - first,
    rows=mesh.host_rows(rows, data.batch_size),
  )  # fmt: skip
  feed = job.feed(
    mesh.to_global(batch, rows, data.batch_size) for batch in batches
  )
  return stack.enter_context(contextlib.closing(feed))


def compile_step(
  job: Job, state: TrainState, feed: Feed[Batch], log: Log
) -> tuple[StepFn, Batch]:
  """Compiles the step; returns it and the first batch, for which it waits."""
  count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  devices = job.setup.devices.size
  job.progress.log(f"{count:,} parameters on {devices} device(s); compiling")
  begun, batch = time.monotonic(), next(feed)
  stage, embedder = job.run.stage, job.run.text.embedder
  log.flops = model_flops(stage, embedder, state.params, job.text_params, batch)
  with log.goodput.part("compile"):
    step_fn = job.setup.compile(state, job.text_params, batch)
  job.progress.log(f"compiled in {time.monotonic() - begun:.1f} s")
  return step_fn, batch


def train_steps(
  job: Job,
  state: TrainState,
  step_fn: StepFn,
  batch: Batch,
  feed: Feed[Batch],
  outputs: Outputs,
) -> tuple[TrainState, bool]:
  """Runs all steps; returns the last state, and True if asked to end early."""
  steps, clock, asked = job.run.training.steps, outputs.log.clock, False
  first = int(state.step)
  job.progress.start(first)
  for step in range(first + 1, steps + 1):
    # 1. Compute: dispatch the step to the devices; the host does not wait.
    outputs.trace.begin(step)
    with clock.part("compute"), StepTraceAnnotation("train", step_num=step):
      state, found = step_fn(state, job.text_params, batch)
      outputs.log.add(step, found)

    # 2. Read the next batch, unless this step is the last.
    asked = job.preemption.reached(step)
    last = asked or step == steps
    if not last:
      try:
        with clock.part("data"):
          batch = next(feed)
      except Stopped:
        last = asked = True

    # 3. Write the trace, metrics, checkpoint and samples that are due.
    outputs.write(step, state, last)
    outputs.watchdog.beat()
    if asked:
      break
  return state, asked
