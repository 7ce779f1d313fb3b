"""Datasets of TFDS as sources, stored as tfrecord or as array_record."""

import os
from collections.abc import Iterator
from typing import Any

from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from imagen_jax import files
from imagen_jax.data import images, png, prepared
from imagen_jax.data.features import Parser, check_feature
from imagen_jax.data.prepare import tfrecord
from imagen_jax.data.prepare.rows import Record, checksum, read_captions
from imagen_jax.data.source import choose_split, open_folder

_FORMATS = ("tfrecord", "array_record")


class TfdsSet:
  """Reads a split of a dataset of TFDS: a file of records is a part.

  Args:
    path: the folder with dataset_info.json.
    split: a split in TFDS syntax.
    image: the path of the feature of images.
    caption: the path of the feature of captions.
    template: the caption, with "{}" where the feature's text belongs.

  Attributes:
    parts: a checksum of each file's name, its size and the records to read.

  Raises:
    ValueError: the dataset, the split or a feature cannot be used.
  """

  def __init__(
    self, path: epath.Path, split: str, image: str, caption: str, template: str
  ):
    builder = open_folder(os.fspath(path), path)
    info = builder.info
    self._format = info.file_format.value
    if self._format not in _FORMATS:
      raise ValueError(
        f"source {path} is stored as {self._format}, expected"
        f" {' or '.join(_FORMATS)}"
      )
    for key, name in (("image", image), ("caption", caption)):
      check_feature(os.fspath(path), key, name, info.features, template)
    paths = {"image": image, "caption": caption}
    self._parse = Parser(info.features, paths, template)
    split = choose_split(os.fspath(path), (split,), "--split", info.splits)
    self._files, self.parts = info.splits[split].file_instructions, []
    for file in self._files:
      prepared.check_inside(file.filename, path)
      name = os.path.basename(file.filename)
      try:
        size = epath.Path(file.filename).stat().length
      except OSError as error:
        raise ValueError(
          f"source {file.filename} cannot be read: {files.reason(error)}"
        ) from error
      self.parts.append(
        checksum([name, size, file.skip, file.take, paths, template])
      )

  def read(self, part: int) -> Iterator[Record]:
    """Reads the records of a file, up to where it is damaged."""
    file, count = self._files[part], 0
    path, end = epath.Path(file.filename), file.skip + file.take
    read = {"tfrecord": _tfrecords, "array_record": _array_records}
    try:
      for data in read[self._format](path):
        if file.skip <= count < end:
          yield self._record(f"{path.name}:{count}", data)
        count += 1
      if count < end:
        raise tfrecord.Damaged(f"it has {count:,} records, expected {end:,}")
    except (OSError, RuntimeError, tfrecord.Damaged) as error:
      # array_record raises RuntimeError for a damaged file.
      reason = f"file cannot be read beyond {count:,} records"
      own = isinstance(error, tfrecord.Damaged)
      said = str(error) if own else files.reason(error)
      yield Record(path.name, reason=f"{reason} ({said})")

  def _record(self, key: str, data: bytes | str) -> Record:
    """Makes a record of its bytes, or of the reason why they are not read."""
    try:
      if isinstance(data, str):
        raise ValueError(data)
      found = self._parse(data)
      image, captions = found["image"], read_captions(found["caption"])
      if not isinstance(image, bytes):  # an array
        image = png.encode_png(images.decode(image))
      if not any(text.strip() for text in captions):
        raise ValueError("image without a caption: no text in the record")
    except ValueError as error:
      return Record(key, reason=str(error))
    return Record(key, image, captions, _numbers(data))


def _tfrecords(path: epath.Path) -> Iterator[bytes | str]:
  """Yields the records of a TFRecord file."""
  with path.open("rb") as file:
    yield from tfrecord.read_records(file)


def _array_records(path: epath.Path) -> Iterator[bytes]:
  """Yields the records of an ArrayRecord file."""
  with files.local_copy(path) as local:
    reader = array_record_module.ArrayRecordReader(local)
    try:
      for i in range(reader.num_records()):
        yield reader.read([i])[0]
    finally:
      reader.close()


def _numbers(data: bytes) -> dict[str, Any]:
  """Returns a record's features that hold one number, for thresholds."""
  found = {}
  features = tf_example_pb2.Example.FromString(data).features.feature
  for name, feature in features.items():
    kind = feature.WhichOneof("kind")
    if kind in ("float_list", "int64_list"):
      values = getattr(feature, kind).value
      if len(values) == 1:
        found[name] = values[0]
  return found
