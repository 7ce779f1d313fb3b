"""Random access to a prepared dataset's records, without TensorFlow."""

import bisect
import collections
import hashlib
import itertools
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source
from etils import epath

from imagen_jax import files
from imagen_jax.data import prepared

try:
  import resource
except ImportError:  # on Windows
  resource = None

# The largest record, an image and its texts, in bytes after decompression.
# Parsing takes a few times as much memory.
MOST_BYTES = 2**26


class Records(Sequence):
  """Reads records dict(image=bytes or array, caption=str or list of str, ...).

  Only the named features are decoded; text is str. A file is opened when it is
  first read. The open files are at most a quarter of the process's limit.

  Args:
    builder: the prepared dataset.
    split: one of its splits, or a part of one, such as "train[:10%]".
    features: the names of the features to read.
  """

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    features: Sequence[str],
  ):
    self._shards = builder.info.splits[split].file_instructions
    for shard in self._shards:
      prepared.check_inside(shard.filename, builder.data_dir)
    self._ends = [*itertools.accumulate(s.take for s in self._shards)]
    self._features = tfds.features.FeaturesDict(
      {name: builder.info.features[name] for name in features}
    )
    # An encoded image stays as it is.
    self._decoders = {
      name: tfds.decode.SkipDecoding()
      for name, feature in self._features.items()
      if isinstance(feature, tfds.features.Image)
    }
    self._folder = epath.Path(builder.data_dir)
    self._open = collections.OrderedDict()  # the most recently read file last
    self._most_open = _most_open()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def fingerprint(self) -> str:
    """Describes the records, so that other ones are noticed."""
    digest = hashlib.sha256()
    for name in ("dataset_info.json", "features.json"):
      digest.update((self._folder / name).read_bytes())
    for shard in self._shards:
      name = os.path.basename(shard.filename)
      digest.update(f"{name} {shard.skip} {shard.take}\n".encode())
    return f"{len(self):,} records ({digest.hexdigest()[:12]})"

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads a record; raises ValueError for one that cannot be parsed."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} is none of the {len(self)}")
    shard = bisect.bisect_right(self._ends, index)
    first = self._ends[shard] - self._shards[shard].take
    data = self._reader(shard)[index - first]
    if len(data) > MOST_BYTES:
      raise ValueError(
        f"it has {len(data):,} bytes, expected at most {MOST_BYTES:,}"
      )
    return self._parse(data)

  def _reader(self, shard: int) -> Sequence[bytes]:
    """Opens a file's records, and closes the least recently read file."""
    with self._lock:
      reader = self._open.pop(shard, None)
      if reader is None:
        reader = array_record_data_source.ArrayRecordDataSource(
          [self._shards[shard]]
        )
      self._open[shard] = reader
      if len(self._open) > self._most_open:
        # The file is closed when the last thread has finished with it.
        self._open.popitem(last=False)
    return reader

  def _parse(self, data: bytes) -> dict[str, Any]:
    """Parses the untrusted bytes of a record."""
    try:
      record = self._features.deserialize_example_np(
        data, decoders=self._decoders
      )
    except Exception as error:  # of any type, from protobuf, numpy or TFDS
      said = files.reason(error)
      raise ValueError(f"it cannot be parsed ({said})") from error
    return {
      name: value if name == "image" else _as_text(name, value)
      for name, value in record.items()
    }


def _as_text(name: str, value: Any) -> str | list[str]:
  """Decodes bytes, or arrays and lists of bytes; ValueError if not UTF-8."""
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, list):
    return [_as_text(name, each) for each in value]
  if not isinstance(value, bytes):
    return value
  try:
    return value.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} is not UTF-8") from error


def _most_open() -> int:
  """Returns how many files may be open; the rest is left to the run."""
  if resource is None:
    return 64
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY:
    soft = 4096
  return max(1, min(1024, soft // 4))
