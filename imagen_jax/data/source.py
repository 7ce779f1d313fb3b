"""Random access to the records of a dataset on disk, without TensorFlow."""

import os
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds
from absl import logging

# Imported so that TFDS knows the dataset by name.
from imagen_jax.files import expand
from imagen_jax.shapes import captioned_shapes_dataset_builder  # noqa: F401
from imagen_jax.shapes.examples import Endless

DATA_DIR = "~/tensorflow_datasets"  # where TFDS prepares sets by default
ENDLESS = "captioned_shapes/endless"


def load_source(
  name: str, split: str, data_dir: str | os.PathLike[str]
) -> Sequence[Mapping]:
  """The records of a split of a TFDS dataset, for example
  "captioned_shapes" or "captioned_shapes/tiny".

  "captioned_shapes/endless" is no dataset on disk: its examples, of which
  captioned_shapes has the first, are drawn when they are read.

  The dataset is prepared under `data_dir` on first use and only read later.
  ValueError for an unknown dataset or split, for a dataset without an `image`
  and a `caption`, and if preparing it needs TensorFlow, which is not there.
  """
  if name == ENDLESS:
    return Endless(split)
  if os.fspath(data_dir) == DATA_DIR:
    data_dir = os.environ.get("TFDS_DATA_DIR") or data_dir  # as for TFDS itself
  data_dir = expand(data_dir)
  builder = _builder(name, data_dir)
  if not builder.is_prepared():
    logging.info("preparing %s in %s, once", name, builder.data_dir)
    try:
      builder.download_and_prepare()
    except FileExistsError:
      builder = _builder(name, data_dir)  # another process was faster
      if not builder.is_prepared():
        raise
    except ImportError as error:  # encoding images from arrays, for example
      if "tensorflow" not in str(error):
        raise
      raise ValueError(
        f"dataset {name!r} can be prepared only where TensorFlow is installed "
        "(pip install tensorflow); prepared once, it is read without"
      ) from error
  for feature in ("image", "caption"):
    if feature not in (builder.info.features or {}):
      raise ValueError(f"dataset {name!r} has no feature {feature!r}")
  if split not in builder.info.splits:
    known = ", ".join(builder.info.splits)
    raise ValueError(f"{name} has no split {split!r}, only {known}")
  decoders = {"image": tfds.decode.SkipDecoding()}
  return Records(builder.as_data_source(split, decoders=decoders))


class Records(Sequence):
  """Records dict(image=bytes as stored, caption=str, ...) by index.

  Text is str; whatever else a dataset has is as TFDS gives it.
  """

  def __init__(self, source: Sequence[dict[str, bytes]]):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, bytes | str]:
    record = self._source[index]
    text = {
      key: value.decode()
      for key, value in record.items()
      if isinstance(value, bytes) and key != "image"
    }
    return record | text


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
  try:
    return tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(f"dataset {name!r} is not known to TFDS") from error
  except ValueError as error:
    # TFDS says first how it was called, and last, on many lines, what to do.
    reason = str(error).rpartition('}": ')[2].split("\n")[0]
    raise ValueError(f"dataset {name!r} cannot be opened: {reason}") from error
