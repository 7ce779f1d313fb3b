"""Random access to a prepared dataset's records, without TensorFlow."""

import bisect
import collections
import contextlib
import hashlib
import itertools
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source

from imagen_jax.data import prepared
from imagen_jax.data.features import Parser

try:
  import resource
except ImportError:  # on Windows
  resource = None

# The largest record, an image and its texts, in bytes after decompression.
# Parsing takes a few times as much memory.
MOST_BYTES = 2**26
_SAMPLED = 8  # records of a fingerprint


class Records(Sequence):
  """Reads the records of a split, as a Parser makes them.

  Args:
    builder: the prepared dataset.
    split: one of its splits, or a part of one, such as "train[:10%]".
    parse: parses the bytes of a record.
  """

  def __init__(
    self,
    builder: tfds.core.DatasetBuilder,
    split: str,
    parse: Parser,
  ):
    splits = builder.info.splits
    self._shards = splits[split].file_instructions
    self._split_bytes = [
      splits[name].num_bytes for name in re.findall(r"\w+", split)
      if name in splits
    ]  # fmt: skip
    for shard in self._shards:
      prepared.check_inside(shard.filename, builder.data_dir)
    self._ends = [*itertools.accumulate(s.take for s in self._shards)]
    self._parse = parse
    self._files = OpenFiles(self._shards)

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads a record; raises ValueError for one that cannot be parsed."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} is none of the {len(self)}")
    data = self._bytes(index)
    if len(data) > MOST_BYTES:
      raise ValueError(
        f"it has {len(data):,} bytes, expected at most {MOST_BYTES:,}"
      )
    return self._parse(data)

  def fingerprint(self) -> str:
    """Describes the records, so that other ones are noticed.

    It follows from their number, from the bytes that the metadata states, and
    from a few records. It does not depend on where the files are. A record
    counts by how often it has each byte, because two processes that make the
    same dataset write the features of a record in different orders.
    """
    found = hashlib.sha256(repr((len(self), self._split_bytes)).encode())
    for i in range(_SAMPLED):
      # A damaged record is one too.
      with contextlib.suppress(OSError, RuntimeError):
        data = self._bytes(i * (len(self) - 1) // (_SAMPLED - 1))
        found.update(np.bincount(np.frombuffer(data, np.uint8), minlength=256))
    return f"{len(self):,} records ({found.hexdigest()[:12]})"

  def _bytes(self, index: int) -> bytes:
    """Reads a record."""
    shard = bisect.bisect_right(self._ends, index)
    first = self._ends[shard] - self._shards[shard].take
    return self._files[shard][index - first]


class OpenFiles:
  """Opens ArrayRecord files when they are first read.

  The open files are at most a quarter of the process's limit. Many threads may
  read them.

  Args:
    files: the files, as array_record's FileInstruction describes them.
  """

  def __init__(self, files: Sequence[Any]):
    self._shards = files
    self._open = collections.OrderedDict()  # the most recently read file last
    self._most_open = _most_open()
    self._lock = threading.Lock()

  def __getitem__(self, shard: int) -> Sequence[bytes]:
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


def _most_open() -> int:
  """Returns how many files may be open; the rest is left to the run."""
  if resource is None:
    return 64
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft == resource.RLIM_INFINITY:
    soft = 4096
  return max(1, min(1024, soft // 4))
