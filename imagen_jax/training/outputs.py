"""The outputs of a training run in its workdir, and when they are written."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_jax.checkpoints.manager import Checkpoints
from imagen_jax.data.png import write_png
from imagen_jax.files import reason
from imagen_jax.interop import published
from imagen_jax.text.settings import StoredText
from imagen_jax.training.evaluation import Best
from imagen_jax.training.grids import sample_grid
from imagen_jax.training.held_out import HeldOut
from imagen_jax.training.job import Job
from imagen_jax.training.lock import Writer
from imagen_jax.training.log import Log
from imagen_jax.training.step import TrainState
from imagen_jax.training.watchdog import Watchdog
from imagen_jax.types import TextEmbedding

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Samples:
  """Holds the examples of train.sample_split that every sample grid shows.

  Attributes:
    batch: the examples, as data/pipeline.py makes them.
    text: the embeddings of their captions; None for an unconditional net.
  """

  batch: dict[str, np.ndarray]
  text: TextEmbedding | None


def read_samples(job: Job) -> Samples | None:
  """Reads the first examples of train.sample_split; None without sample grids.

  Raises:
    Stopped: the run was asked to end meanwhile.
  """
  training = job.run.training
  if training.sample_every is None:
    return None
  batch = job.first_batch(training.sample_splits, training.num_samples)
  given = job.run.text
  if isinstance(given, StoredText):
    text = given.embedder.for_sampling(
      job.text_params, batch["tokens"], batch["mask"]
    )
  else:
    encode = published.text_encoder(given, job.text_params)
    text = encode and encode.from_ids(batch["tokens"], batch["mask"])
  return Samples(batch, text)


class Trace:
  """Traces a range of steps into workdir/trace.

  A run that resumes within the range traces the rest of it. The end of the
  with-block ends the trace and logs the outcome, also after an error. Of many
  processes the first one traces: its host does what all others do.
  """

  def __init__(self, job: Job, steps: tuple[int, int] | None):
    self._job = job
    self._steps = steps if jax.process_index() == 0 else None
    self._begun, self._ended = 0, False  # the first traced step
    self._run: list[int] = []  # this run's first and newest step

  def begin(self, step: int) -> None:
    """Starts the trace at the first step of the range that runs."""
    if self._steps is None:
      return
    self._run = [*self._run[:1], step]
    first, last = self._steps
    if first <= step <= last and not self._begun:
      self._begun = step
      try:
        jax.profiler.start_trace(f"{self._job.workdir}/trace")
      except Exception as error:  # a notebook may have a trace open
        self._ended = True
        self._job.progress.log(f"no trace is written: {reason(error)}")

  def end(self, step: int, state: TrainState) -> None:
    """Writes the trace after the last step of the range."""
    if self._begun and not self._ended and step == self._steps[1]:
      jax.block_until_ready(state)
      self._stop()

  def __enter__(self) -> "Trace":
    return self

  def __exit__(self, *_: Any) -> None:
    if self._begun and not self._ended:
      self._stop()
    elif self._steps is not None and not self._begun:
      first, last = self._steps
      had = (
        f"steps {self._run[0]} to {self._run[-1]}" if self._run else "no step"
      )
      self._job.progress.log(
        f"no trace is written: profile_steps is {first}:{last}, but this run "
        f"had {had}"
      )

  def _stop(self) -> None:
    """Writes the trace; a failure is logged and does not end training."""
    self._ended, where = True, f"{self._job.workdir}/trace"
    traced = f"steps {self._begun}:{self._run[-1]}"
    try:
      jax.profiler.stop_trace()
    except Exception as error:  # disks and stores raise many kinds
      self._job.progress.log(
        f"{traced} are not traced: {where}: {reason(error)}"
      )
    else:
      self._job.progress.log(f"{traced} are traced: {where}")


@dataclasses.dataclass(frozen=True)
class Outputs:
  """Writes a run's outputs to its workdir.

  Attributes:
    job: the run.
    writer: the right to write there.
    log: the metrics, written every train.log_every steps.
    trace: the trace of --profile_steps.
    saved: the checkpoints, written every train.checkpoint_every steps.
    config: the config that a checkpoint keeps.
    samples: the examples of sample grids, written every train.sample_every
      steps; None writes none.
    watchdog: watches for hangs, except while a sample grid is sampled.
    held_out: measures the loss on held-out images every train.validate_every
      steps; None measures none.
    best: evaluates the averaged weights every train.evaluate_every steps, and
      keeps the best checkpoint; None evaluates none.
  """

  job: Job
  writer: Writer
  log: Log
  trace: Trace
  saved: Checkpoints
  config: Config
  samples: Samples | None
  watchdog: Watchdog
  held_out: HeldOut | None = None
  best: Best | None = None

  def compile(self, state: TrainState) -> "Outputs":
    """Compiles what later steps write, before the first step.

    A run that is asked to end may have half a minute to save.

    Returns:
      The same outputs with compiled programs.
    """
    with self.log.goodput.part("compile"), self.watchdog.paused():
      self.saved.compile(state)
      if self.samples is not None:
        self._sample(state.ema, steps=0)
      if self.best is not None:
        self.best.evaluator.sample(state.ema, steps=0)
      held_out = self.held_out and self.held_out.compile(state.ema)
    return dataclasses.replace(self, held_out=held_out)

  def write(self, step: int, state: TrainState, last: bool) -> None:
    """Writes due outputs after a step; always logs and saves the last step."""
    training, progress = self.job.run.training, self.job.progress
    self.trace.end(step, state)
    found = {}
    if self.held_out is not None and (
      step % training.validate_every == 0 or step == training.steps
    ):
      found |= self._validate(step, state)
    if self.best is not None and (
      step == training.steps
      # A run that was asked to end saves first, and has little time.
      or (step % training.evaluate_every == 0 and not last)
    ):
      found |= self._evaluate(step, state)
    if last or step % training.log_every == 0 or found:
      self.log.write(step, found)
    save = last or step % training.checkpoint_every == 0
    draw = self.samples is not None and (
      step % training.sample_every == 0 or step == training.steps
    )
    if save or draw:
      jax.block_until_ready(state)  # so that the pause excludes the step
    progress.pause()
    if save:
      self.writer.check(step)
      with self.log.clock.part("checkpoint"):
        self.saved.save(step, state, self.config)
    if draw:
      with self.log.goodput.part("samples"), self.watchdog.paused():
        self._draw(step, state.ema)
    progress.resume()

  def _validate(self, step: int, state: TrainState) -> dict[str, float]:
    """Measures the loss on held-out images, and logs it."""
    with self._measuring(state):
      found = self.held_out.losses(state.ema)
    loss = found["validation_loss"]
    self.job.progress.log(f"step {step}: loss {loss:.4f} on held-out images")
    return found

  def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
    """Evaluates the averaged weights, and offers the state as the best."""
    with self._measuring(state):
      found = self.best.evaluator.measure(state.ema)
    name = self.best.evaluator.metric
    self.writer.check(step)
    with self.log.clock.part("checkpoint"):
      self.best.offer(step, found[name], state, self.config)
    self.job.progress.log(f"step {step}: {name} {found[name]:.4g}")
    return found

  @contextlib.contextmanager
  def _measuring(self, state: TrainState) -> Iterator[None]:
    """Waits for the step, and counts what follows as samples."""
    with self.log.clock.part("compute"):
      jax.block_until_ready(state)  # so that the pause excludes the step
    self.job.progress.pause()
    with self.log.goodput.part("samples"), self.watchdog.paused():
      yield
    self.job.progress.resume()

  def _draw(self, step: int, params: Any) -> None:
    """Writes a sample grid to workdir/samples and for TensorBoard."""
    job, grid = self.job, self._sample(params)
    if jax.process_index() == 0:
      path = epath.Path(job.workdir) / "samples" / f"{step:08}.png"
      try:
        write_png(path, grid)
      except ValueError as error:
        job.progress.log(f"{error}; training continues without it")
    self.log.metrics.write_image(step, "samples", grid)

  def _sample(self, params: Any, steps: int | None = None) -> np.ndarray:
    """Samples a grid; `steps` as in sample_grid."""
    run, samples = self.job.run, self.samples
    return sample_grid(
      run.stage, run.sampling, params, samples.text, samples.batch, steps=steps
    )
