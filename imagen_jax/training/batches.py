"""The batches that a stage trains on."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from imagen_jax.data.examples import BadRecords
from imagen_jax.data.pipeline import make_batches
from imagen_jax.data.source import load_source
from imagen_jax.stage import Stage
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.training.settings import Data

Split = str | Sequence[str]  # a split, or several: the first that exists


def check_splits(
  data: Data, splits: Mapping[str, Split], *, captions: bool
) -> None:
  """Opens the splits that a run will read, and prepares the dataset if needed.

  Preparing a dataset takes seconds and no accelerator. Call this before any
  longer work.

  Args:
    data: where the examples are.
    splits: what is to be read, by the key that names it.
    captions: whether captions are read.

  Raises:
    ValueError: a split or the dataset cannot be used; the key is named.
  """
  for key, split in splits.items():
    load_source(
      data.name, split, data.data_dir, features=_features(captions), key=key
    )


def _features(captions: bool) -> tuple[str, ...]:
  return ("image", "caption") if captions else ("image",)


def open_batches(
  stage: Stage,
  data: Data,
  tokenizer: Tokenizer | None,
  *,
  split: Split,
  batch_size: int,
  start_step: int = 0,
  steps: int | None = None,
  rows: Sequence[int] | None = None,
  bad: BadRecords | None = None,
  watch: Callable[[Sequence[Mapping]], Sequence[Mapping]] = lambda it: it,
) -> Iterator[dict[str, np.ndarray]]:
  """Opens the batches of a split for a stage.

  Args:
    stage: gives the resolutions and the crop.
    data: where the examples are.
    tokenizer: turns captions into ids; None to read no captions.
    split: a split that check_splits has found.
    batch_size: the number of examples in a batch, over all hosts.
    start_step: the step of the first batch.
    steps: the number of batches; None for batches without end.
    rows: the examples of each batch to read; None reads all.
    bad: counts the records that cannot be used.
    watch: replaces the records by ones that are observed while they are read.
  """
  features = _features(tokenizer is not None)
  source = load_source(data.name, split, data.data_dir, features=features)
  return make_batches(
    watch(source),
    size=stage.size,
    lowres_size=stage.lowres_size,
    crop=stage.crop_size,
    tokenize=tokenizer,
    global_batch=batch_size,
    seed=data.seed,
    start_step=start_step,
    steps=steps,
    rows=rows,
    cache=data.cache and split == data.split,
    bad=bad,
    max_pixels=data.max_pixels,
    least_side=data.least_side,
    max_small_share=data.max_small_share,
    threads=data.threads,
    reads=data.reads,
    buffer=data.buffer,
  )
