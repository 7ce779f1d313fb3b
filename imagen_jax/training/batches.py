"""The batches that a stage trains on."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from imagen_jax.data.embeddings import read_plan
from imagen_jax.data.examples import BadRecords, Tokenize
from imagen_jax.data.mixture import Ingredient, Mixture
from imagen_jax.data.pipeline import make_batches
from imagen_jax.data.source import load_source
from imagen_jax.stage import Stage
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
    open_sources(data, split, captions=captions, key=key)


def open_sources(
  data: Data, split: Split, *, captions: bool, key: str = "split"
) -> Mixture:
  """Opens a split of each dataset.

  Args:
    data: where the examples are.
    split: a split. data.split stands for each part's own.
    captions: whether captions are read.
    key: the setting that names the split, for messages.

  Raises:
    ValueError: a split or a dataset cannot be used.
  """
  ingredients = []
  for part in data.parts:
    records = load_source(
      part.name,
      part.split if split == data.split else split,
      data.data_dir,
      features=("image", "caption") if captions else ("image",),
      paths={"image": part.image, "caption": part.caption},
      template=part.template,
      key=key,
    )
    name = part.name if data.mixture else ""
    ingredients.append(Ingredient(records, part.weight, name))
  return Mixture(tuple(ingredients))


def fingerprints(data: Data) -> list[str]:
  """Describes the records of each dataset to train on, and their embeddings."""
  mixture = open_sources(data, data.split, captions=False)
  found = [
    f"{part.name}, {part.split}: {each.records.fingerprint()}"
    for part, each in zip(data.parts, mixture.ingredients)
  ]
  if data.embeddings is not None:
    plan = read_plan(data.embeddings)
    found.append(f"embeddings: {plan.storage} ({plan.key('').hex()[:12]})")
  return found


def open_batches(
  stage: Stage,
  data: Data,
  tokenizer: Tokenize | None,
  *,
  split: Split,
  batch_size: int,
  start_step: int = 0,
  steps: int | None = None,
  rows: Sequence[int] | None = None,
  bad: BadRecords | None = None,
  watch: Callable[[Sequence[Mapping]], Sequence[Mapping]] = lambda it: it,
  key: str = "split",
) -> Iterator[dict[str, np.ndarray]]:
  """Opens the batches of a split for a stage.

  Args:
    stage: gives the resolutions and the crop.
    data: where the examples are.
    tokenizer: turns captions into ids or embeddings; None to read no captions.
    split: a split that check_splits has found.
    batch_size: the number of examples in a batch, over all hosts.
    start_step: the step of the first batch.
    steps: the number of batches; None for batches without end.
    rows: the examples of each batch to read; None reads all.
    bad: counts the records that cannot be used.
    watch: replaces the records of each dataset by ones that are observed while
      they are read.
    key: the setting that names the split, for messages.
  """
  captions = tokenizer is not None
  mixture = open_sources(data, split, captions=captions, key=key)
  watched = [
    dataclasses.replace(each, records=watch(each.records))
    for each in mixture.ingredients
  ]
  return make_batches(
    Mixture(tuple(watched)),
    size=stage.size,
    lowres_size=stage.lowres_size,
    crop=stage.crop_size,
    tokenize=tokenizer,
    global_batch=batch_size,
    seed=data.seed,
    start_step=start_step,
    steps=steps,
    rows=rows,
    flip=data.flip and split == data.split,
    cache=data.cache and split == data.split,
    bad=bad,
    max_pixels=data.max_pixels,
    least_side=data.least_side,
    max_small_share=data.max_small_share,
    threads=data.threads,
    reads=data.reads,
    buffer=data.buffer,
  )
