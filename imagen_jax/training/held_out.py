"""The loss on held-out images, by log-SNR, of the averaged weights."""

import dataclasses
from typing import Any

import jax
import numpy as np

from imagen_jax.data.source import NoSplit
from imagen_jax.parallel import compiler, mesh
from imagen_jax.training.job import Job
from imagen_jax.training.metrics_window import mean_losses
from imagen_jax.training.step import batch_loss, by_logsnr, encode_text


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Measures the loss on the first batches of a split.

  Not in the paper: times, noise and dropped captions are those of training, but
  the same at every call. So the losses of different steps can be compared.

  Attributes:
    job: the run.
    batches: this process's rows of each batch.
    size: the examples of a batch, over all processes.
    rows: the sharding of a batch.
    sums: (weights, text weights, batch, its number) -> by_logsnr's sums.
  """

  job: Job
  batches: list[dict[str, np.ndarray]]
  size: int
  rows: jax.sharding.NamedSharding
  sums: Any

  def compile(self, params: Any) -> "HeldOut":
    """Returns the same with a compiled program, for weights like params."""
    text_params, batch = self.job.text_params, self._batch(0)
    lowered = self.sums.lower(params, text_params, batch, np.int32(0))
    sums = lowered.compile(compiler_options=compiler.options())
    return dataclasses.replace(self, sums=sums)

  def losses(self, params: Any) -> dict[str, float]:
    """Returns the mean loss, and that of each log-SNR bucket with examples."""
    text_params = self.job.text_params
    found = [
      self.sums(params, text_params, self._batch(i), np.int32(i))
      for i in range(len(self.batches))
    ]
    sums, counts = np.sum(jax.device_get(found), axis=0, dtype=np.float64)
    loss = float(sums.sum() / counts.sum())
    by_bucket = mean_losses("validation_loss_logsnr", sums, counts)
    return {"validation_loss": loss, **by_bucket}

  def _batch(self, number: int) -> dict[str, jax.Array]:
    """Puts a batch on the devices."""
    return mesh.to_global(self.batches[number], self.rows, self.size)


def read_held_out(job: Job) -> HeldOut | None:
  """Reads the first images of the split; None without train.validate_every.

  A batch is as large as what a step computes at once. A dataset without the
  splits that are read by default is logged, and None is returned.

  Raises:
    Stopped: the run was asked to end meanwhile.
  """
  run, training = job.run, job.run.training
  if training.validate_every is None:
    return None
  size = run.data.batch_size // training.accumulate
  devices = job.setup.devices
  rows = mesh.batch_sharding(devices, size)
  try:
    batches = job.first_batches(
      training.validate_splits, size,
      training.validate_batches * training.accumulate,
      rows=mesh.host_rows(rows, size), key="train.validate_split",
    )  # fmt: skip
  except NoSplit as error:
    job.progress.log(f"no loss on held-out images is logged: {error}")
    return None

  def sums(params, text_params, batch, number):
    key = jax.random.fold_in(jax.random.key(0), number)
    draws = run.stage.draw(key, size)
    text = encode_text(run.text.embedder, text_params, batch, draws.dropped)
    return by_logsnr(*batch_loss(run.stage, params, draws, batch, text))

  jitted = jax.jit(sums, out_shardings=mesh.replicated(devices))
  return HeldOut(job, batches, size, rows, jitted)
