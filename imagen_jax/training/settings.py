"""The settings of a training run besides its stage: the data and the pace."""

import dataclasses
import math
from typing import Any

from imagen_jax.data.captions import TEMPLATE, check_template
from imagen_jax.data.feed import BUFFER, READS
from imagen_jax.data.images import MAX_PIXELS, PIL_MAX_PIXELS

EVALUATE_METRICS = ("frechet_pixels", "judge")


@dataclasses.dataclass(frozen=True)
class Part:
  """Describes a dataset of a mixture; None stands for the value in Data.

  Attributes:
    name: as Data's.
    weight: the share of examples from it, relative to those of the other parts.
      Shares are kept to 1 % of the smallest.
    split: as Data's.
    image: as Data's.
    caption: as Data's.
    template: as Data's.
  """

  name: str = ""
  weight: float = 1.0
  split: str | None = None
  image: str | None = None
  caption: str | None = None
  template: str | None = None

  def __post_init__(self):
    if not self.name:
      raise ValueError("name is '', expected the name of a dataset")
    if not 0 < self.weight < math.inf:
      raise ValueError(f"weight is {self.weight}, expected more than 0")
    if self.template is not None:
      check_template("template", self.template)


@dataclasses.dataclass(frozen=True)
class Data:
  """Describes where the training images come from.

  Attributes:
    name: the TFDS name of the dataset, or its folder. captioned_shapes/endless
      needs no data_dir: its examples are drawn when they are read.
    mixture: several datasets in place of `name`, as dict(name="a", weight=460).
      Each may have its own split, image, caption and template.
    split: a split or a part of one, such as train[:10%].
    image: the path of the feature that holds the image, such as pair/image.
    caption: the path of the feature that holds the caption, such as
      captions/text. It holds a text or a class, or a list of them.
    template: the caption, with {} where the feature's text belongs, such as
      "a photo of a {}".
    embeddings: the folder of the captions' embeddings that the verb embed made,
      so that the text encoder is not needed; None encodes captions in the step.
    data_dir: the folder where datasets are prepared.
    batch_size: examples in a batch, over all hosts.
    seed: seed of the order, the crops, the flips and the choice among several
      captions.
    flip: mirrors half of the images, except for captions with a word that
      begins with left or right. Not in the paper: any flip.
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
  mixture: tuple[Part, ...] = ()
  split: str = "train"
  image: str = "image"
  caption: str = "caption"
  template: str = TEMPLATE
  embeddings: str | None = None
  data_dir: str = "~/tensorflow_datasets"
  batch_size: int = 2048
  seed: int = 0
  flip: bool = False
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
    check_template("template", self.template)
    if not self.patience > 0:
      raise ValueError(f"patience is {self.patience}, expected more than 0")
    if not 1 <= self.max_pixels <= PIL_MAX_PIXELS:
      raise ValueError(
        f"max_pixels is {self.max_pixels}, expected 1 to {PIL_MAX_PIXELS}, the"
        " most that Pillow opens"
      )

  @property
  def parts(self) -> tuple[Part, ...]:
    """The parts of the mixture with all values; one part without a mixture."""
    return tuple(
      Part(
        part.name,
        part.weight,
        split=part.split or self.split,
        image=part.image or self.image,
        caption=part.caption or self.caption,
        template=part.template or self.template,
      )
      for part in self.mixture or (Part(self.name),)
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
    sample_split: the split of these examples; None for the first that exists
      of test, validation and train.
    validate_every: steps between two measurements of the loss on held-out
      images, with one at the end; None measures none.
    validate_batches: batches of held-out images, each of data.batch_size.
    validate_split: the split of these images; None for the first that exists of
      validation and test. If neither does, nothing is measured.
    evaluate_every: steps between two evaluations of samples of the averaged
      weights, with one at the end; None makes none. The best checkpoint is kept
      in best/.
    evaluate_metric: frechet_pixels, the Frechet distance to real images at
      16x16 pixels; or judge, the share of claims that images of
      captioned_shapes show.
    evaluate_images: images in an evaluation, of sample_split, and of the first
      dataset of a mixture.
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
  sample_split: str | None = None
  validate_every: int | None = None
  validate_batches: int = 4
  validate_split: str | None = None
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
      "validate_batches",
    )
    check_ranges(self, lowest=dict.fromkeys(counts, 1))
    check_ranges(self, lowest={"evaluate_images": 2})
    if self.evaluate_metric not in EVALUATE_METRICS:
      raise ValueError(
        f"evaluate_metric is {self.evaluate_metric!r}, expected"
        f" {' or '.join(EVALUATE_METRICS)}"
      )
    for name in (
      "keep_every",
      "sample_every",
      "validate_every",
      "evaluate_every",
    ):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1, or None")
    if self.hang_after is not None and not self.hang_after > 0:
      raise ValueError(
        f"hang_after is {self.hang_after}, expected more than 0, or None"
      )
    if not 0 <= self.ema_decay <= 1:
      raise ValueError(f"ema_decay is {self.ema_decay}, expected 0 to 1")

  @property
  def sample_splits(self) -> tuple[str, ...]:
    """The splits of sample grids, of which the first that exists is read."""
    if self.sample_split is None:
      return ("test", "validation", "train")  # prepare makes the last two
    return (self.sample_split,)

  @property
  def validate_splits(self) -> tuple[str, ...]:
    """The splits of held-out images, of which the first that exists is read."""
    if self.validate_split is None:
      return ("validation", "test")
    return (self.validate_split,)


def check_ranges(settings: Any, *, lowest: dict[str, int]) -> None:
  """Raises ValueError for a setting below its lowest value or a bad seed."""
  for name, least in lowest.items():
    value = getattr(settings, name)
    if value < least:
      raise ValueError(f"{name} is {value}, expected at least {least}")
  if not 0 <= settings.seed < 2**32:
    raise ValueError(f"seed is {settings.seed}, expected 0 to {2**32 - 1}")
