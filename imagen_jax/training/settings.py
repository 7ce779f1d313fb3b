"""What a training run is told besides its stage: the data and the pace."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Data:
  """Where the training pictures come from.

  name and split as TFDS knows them; data_dir is where they are prepared.
  batch_size counts the examples of all hosts. cache keeps the resized
  pictures of the split in memory.
  """

  name: str = "captioned_shapes"
  split: str = "train"
  data_dir: str = "~/tensorflow_datasets"
  batch_size: int = 2048
  seed: int = 0
  cache: bool = False

  def __post_init__(self):
    check_ranges(self, lowest={"batch_size": 1})


@dataclasses.dataclass(frozen=True)
class Training:
  """How long to train and what to tell and keep meanwhile (steps).

  accumulate: in how many parts, one after the other, a batch is computed.
  """

  steps: int = 2_500_000
  accumulate: int = 1
  seed: int = 0
  ema_decay: float = 0.9999
  log_every: int = 100
  sample_every: int = 10_000
  checkpoint_every: int = 5_000
  keep_checkpoints: int = 3
  num_samples: int = 16
  sample_split: str = "test"

  def __post_init__(self):
    counts = (
      "steps",
      "accumulate",
      "log_every",
      "sample_every",
      "checkpoint_every",
      "keep_checkpoints",
      "num_samples",
    )
    check_ranges(self, lowest=dict.fromkeys(counts, 1))
    if not 0 <= self.ema_decay <= 1:
      raise ValueError(f"ema_decay is {self.ema_decay}, expected 0 to 1")


def check_ranges(settings: Any, *, lowest: dict[str, int]) -> None:
  """ValueError for a setting below its lowest value, or a seed not 32 bits."""
  for name, least in lowest.items():
    value = getattr(settings, name)
    if value < least:
      raise ValueError(f"{name} is {value}, expected at least {least}")
  if not 0 <= settings.seed < 2**32:
    raise ValueError(f"seed is {settings.seed}, expected 0 to {2**32 - 1}")
