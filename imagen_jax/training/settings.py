"""The settings of a training run besides its stage: the data and the pace."""

import dataclasses
from typing import Any

from imagen_jax.data.feed import BUFFER, READS
from imagen_jax.data.images import MAX_PIXELS, PIL_MAX_PIXELS

EVALUATE_METRICS = ("frechet_pixels", "judge")


@dataclasses.dataclass(frozen=True)
class Data:
  """Describes where the training images come from.

  Attributes:
    name: the TFDS name of the dataset. captioned_shapes/endless needs no
      data_dir: its examples are drawn when they are read.
    split: a split or a part of one, such as train[:10%].
    data_dir: the folder where datasets are prepared.
    batch_size: examples in a batch, over all hosts.
    seed: seed of the order, the crops and the choice among several captions.
    cache: keeps the resized images of the split in memory.
    max_bad_share: the share of bad records, 0 to 1, above which training ends.
    patience: seconds without a record after which training ends.
    max_pixels: the most pixels of an image; a larger one is a bad record. A
      JPEG's pixels count after its decoder has shrunk it towards the stage's
      resolution.
    least_side: the fewest pixels of an image's smaller side; 0 keeps all. A
      smaller image, of which only the header is read, is replaced by a random
      one.
    max_small_share: the share of such images, 0 to 1, above which training
      ends.
    threads: the most images that this host decodes at once; None decodes as
      many as there are cores that the process may use.
    reads: the most records that this host reads at once.
    buffer: the batches of this host to read ahead.
  """

  name: str = "captioned_shapes"
  split: str = "train"
  data_dir: str = "~/tensorflow_datasets"
  batch_size: int = 2048
  seed: int = 0
  cache: bool = False
  max_bad_share: float = 0.01
  patience: float = 600.0
  max_pixels: int = MAX_PIXELS
  least_side: int = 0
  max_small_share: float = 0.5
  threads: int | None = None
  reads: int = READS
  buffer: int = BUFFER

  def __post_init__(self):
    lowest = {"batch_size": 1, "least_side": 0, "reads": 1, "buffer": 1}
    check_ranges(self, lowest=lowest)
    for name in ("max_bad_share", "max_small_share"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
    if self.threads is not None and self.threads < 1:
      raise ValueError(
        f"threads is {self.threads}, expected at least 1, or None for all cores"
      )
    if not self.patience > 0:
      raise ValueError(f"patience is {self.patience}, expected more than 0")
    if not 1 <= self.max_pixels <= PIL_MAX_PIXELS:
      raise ValueError(
        f"max_pixels is {self.max_pixels}, expected 1 to {PIL_MAX_PIXELS}, the"
        " most that Pillow opens"
      )


@dataclasses.dataclass(frozen=True)
class Training:
  """Describes how long to train, and what to log and save meanwhile.

  Attributes:
    steps: the last step.
    accumulate: the number of equal parts of a batch, computed one after
      another.
    seed: seed of the weights and of each step's noise, times and dropped text.
    ema_decay: the largest decay of the averaged weights, 0 to 1.
    log_every: steps between two logs of metrics.
    sample_every: steps between two sample grids, and one at the end; None
      writes none.
    checkpoint_every: steps between two checkpoints.
    keep_checkpoints: how many of the newest checkpoints are kept.
    keep_every: keeps the checkpoints of every so many steps as well; None does
      not.
    hang_after: seconds without a step, after data.patience and at least 20
      times as long as a step takes, that count as a hang; None never does.
    max_skipped: steps in a row without a finite loss or gradient that end the
      run; fewer are skipped.
    num_samples: examples in a sample grid.
    sample_split: the split of these examples.
    evaluate_every: steps between two evaluations of samples of the averaged
      weights, with one at the end; None makes none. The best checkpoint is kept
      in best/.
    evaluate_metric: frechet_pixels, the Frechet distance to real images at
      16x16 pixels; or judge, the share of claims that images of
      captioned_shapes show.
    evaluate_images: images in an evaluation, of sample_split.
    start_from: the weights that a new run starts from, named as in a cascade's
      config; None for random weights.
  """

  steps: int = 2_500_000
  accumulate: int = 1
  seed: int = 0
  ema_decay: float = 0.9999
  log_every: int = 100
  sample_every: int | None = 10_000
  checkpoint_every: int = 5_000
  keep_checkpoints: int = 3
  keep_every: int | None = None
  hang_after: float | None = 300.0
  max_skipped: int = 10
  num_samples: int = 16
  sample_split: str = "test"
  evaluate_every: int | None = None
  evaluate_metric: str = "frechet_pixels"
  evaluate_images: int = 512
  start_from: str | None = None

  def __post_init__(self):
    counts = (
      "steps",
      "accumulate",
      "log_every",
      "checkpoint_every",
      "keep_checkpoints",
      "max_skipped",
      "num_samples",
    )
    check_ranges(self, lowest=dict.fromkeys(counts, 1))
    check_ranges(self, lowest={"evaluate_images": 2})
    if self.evaluate_metric not in EVALUATE_METRICS:
      raise ValueError(
        f"evaluate_metric is {self.evaluate_metric!r}, expected"
        f" {' or '.join(EVALUATE_METRICS)}"
      )
    for name in ("keep_every", "sample_every", "evaluate_every"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1, or None")
    if self.hang_after is not None and not self.hang_after > 0:
      raise ValueError(
        f"hang_after is {self.hang_after}, expected more than 0, or None"
      )
    if not 0 <= self.ema_decay <= 1:
      raise ValueError(f"ema_decay is {self.ema_decay}, expected 0 to 1")


def check_ranges(settings: Any, *, lowest: dict[str, int]) -> None:
  """Raises ValueError for a setting below its lowest value or a bad seed."""
  for name, least in lowest.items():
    value = getattr(settings, name)
    if value < least:
      raise ValueError(f"{name} is {value}, expected at least {least}")
  if not 0 <= settings.seed < 2**32:
    raise ValueError(f"seed is {settings.seed}, expected 0 to {2**32 - 1}")
