"""The batches that a stage trains on."""

from collections.abc import Iterator, Sequence

import numpy as np

from imagen_jax.data.pipeline import BadRecords, make_batches
from imagen_jax.data.source import load_source
from imagen_jax.stage import Stage
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.training.settings import Data


def open_batches(
  stage: Stage,
  data: Data,
  tokenizer: Tokenizer,
  *,
  split: str,
  batch_size: int,
  start_step: int = 0,
  rows: Sequence[int] | None = None,
  bad: BadRecords | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of a split for a stage; of each those rows, all by default."""
  return make_batches(
    load_source(data.name, split, data.data_dir),
    size=stage.size,
    lowres_size=stage.lowres_size,
    crop=stage.crop_size,
    tokenize=tokenizer,
    global_batch=batch_size,
    seed=data.seed,
    start_step=start_step,
    rows=rows,
    cache=data.cache and split == data.split,
    bad=bad,
  )
