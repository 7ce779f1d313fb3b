"""Random access to the records of a dataset on disk, without TensorFlow."""

import os
from collections.abc import Sequence

import tensorflow_datasets as tfds
from absl import logging

# Imported so that TFDS knows the dataset by name.
from imagen_jax.data.captioned_shapes import captioned_shapes_dataset_builder  # noqa: F401


def load_source(
  name: str, split: str, data_dir: str | os.PathLike[str]
) -> "Records":
  """The records of a split of a TFDS dataset, for example
  "captioned_shapes" or "captioned_shapes/tiny".

  The dataset is prepared under `data_dir` on first use and only read later.
  An unknown dataset or split raises ValueError.
  """
  builder = _builder(name, os.path.expanduser(data_dir))
  if not builder.is_prepared():
    logging.info("preparing %s in %s, once", name, builder.data_dir)
    builder.download_and_prepare()
  if split not in builder.info.splits:
    known = ", ".join(builder.info.splits)
    raise ValueError(f"{name} has no split {split!r}, only {known}")
  decoders = {"image": tfds.decode.SkipDecoding()}
  return Records(builder.as_data_source(split, decoders=decoders))


class Records(Sequence):
  """Records dict(image=bytes as stored, caption=str, ...: str) by index."""

  def __init__(self, source: Sequence[dict[str, bytes]]):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, bytes | str]:
    record = self._source[index]
    return record | {k: v.decode() for k, v in record.items() if k != "image"}


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
  try:
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    raise ValueError(f"dataset {name!r} is not known to TFDS") from error
