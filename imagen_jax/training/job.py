"""A training run in progress on this process's devices."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from imagen_jax.checkpoints.manager import has_checkpoint
from imagen_jax.data.embeddings import Embeddings
from imagen_jax.data.examples import BadRecords
from imagen_jax.data.feed import Feed
from imagen_jax.interop import published
from imagen_jax.parallel import mesh
from imagen_jax.progress import Progress
from imagen_jax.text.settings import NoText
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.training.batches import Split, check_splits, open_batches
from imagen_jax.training.evaluation import check_evaluation
from imagen_jax.training.preemption import Preemption
from imagen_jax.training.setup import Run, Setup, net_shapes, set_up

# The log line of a run that ends while it waits for its first batch.
STOPPED = "asked to end before the first step"


@dataclasses.dataclass(frozen=True)
class Job:
  """Holds a run in progress: its devices, its outputs and its signal handlers.

  Attributes:
    run: the run's settings.
    workdir: the folder of everything that the run writes.
    setup: the run's shardings and functions.
    tokenizer: the text encoder's, or the stored embeddings of captions; None
      where nets are unconditional.
    text_params: the text encoder's weights, placed on the mesh.
    progress: logs lines; quiet on all processes but the first.
    preemption: knows if the run was asked to end.
  """

  run: Run
  workdir: str
  setup: Setup
  tokenizer: Tokenizer | Embeddings | None
  text_params: Any
  progress: Progress
  preemption: Preemption

  def batches(
    self, split: Split, batch_size: int, **settings: Any
  ) -> Iterator[dict[str, np.ndarray]]:
    """Opens the batches of a split; settings are arguments of open_batches."""
    return open_batches(
      self.run.stage, self.run.data, self.tokenizer,
      split=split, batch_size=batch_size, **settings,
    )  # fmt: skip

  def feed(self, batches: Iterator[Any]) -> Feed:
    """Reads batches ahead, with the config's patience for slow records."""
    return Feed(
      batches,
      patience=self.run.data.patience,
      log=self.progress.log,
      stop=self.preemption.asked,
    )

  def first_batches(
    self, split: Split, batch_size: int, count: int, **settings: Any
  ) -> list[dict[str, np.ndarray]]:
    """Returns the first batches of a split.

    Raises:
      Stopped: the run was asked to end meanwhile.
    """
    bad = BadRecords(self.run.data.max_bad_share)
    batches = self.batches(split, batch_size, steps=count, bad=bad, **settings)
    with contextlib.closing(self.feed(batches)) as feed:
      return [next(feed) for _ in range(count)]

  def first_batch(
    self, split: Split, batch_size: int, **settings: Any
  ) -> dict[str, np.ndarray]:
    """Returns the first batch of a split, as first_batches does."""
    return self.first_batches(split, batch_size, 1, **settings)[0]


def check_files(run: Run, workdir: str) -> None:
  """Checks all files that a run names, before it reads or makes any.

  Raises:
    ValueError: the vocabulary, the text encoder's weights or train.start_from
      cannot be read or do not match the nets; or a split of the data cannot be
      used, or does not suit train.evaluate_metric.
  """
  published.check_text(run.text)
  captions = not isinstance(run.text, NoText)
  path = run.training.start_from
  if path and not has_checkpoint(workdir):  # a resumed run reads none
    published.check_net(path, net_shapes(run.stage, run.text))
  training = run.training
  splits = {"data.split": run.data.split}
  if training.sample_every:
    splits["train.sample_split"] = training.sample_splits
  if training.validate_every and training.validate_split is not None:
    splits["train.validate_split"] = training.validate_split
  check_splits(run.data, splits, captions=captions)
  check_evaluation(run)


@contextlib.contextmanager
def open_job(run: Run, workdir: str) -> Iterator[Job]:
  """Sets up a run, its mesh and its signal handlers, for a with-block.

  Raises:
    ValueError: the mesh does not fit the devices or the batch, or a vocabulary
      or weights cannot be read.
  """
  tokenizer = published.tokenizer(run.text)
  quiet = jax.process_index() > 0
  with Preemption() as preemption:
    progress = Progress("train", run.training.steps, quiet=quiet)
    devices = mesh.make_mesh(run.mesh)
    with jax.set_mesh(devices):
      setup = set_up(run, devices)
      text_params = published.load_text(run.text, setup.placement)
      yield Job(
        run, workdir, setup, tokenizer, text_params, progress, preemption
      )
