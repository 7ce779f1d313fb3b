"""Shards of a prepared dataset: the plan, and the work of one shard.

The plan follows from the source's files and the settings. A shard is a function
of the plan and its number, so any process writes equal bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from imagen_jax import files
from imagen_jax.data.prepare.filters import Dropped, Filters, Kept
from imagen_jax.data.prepare.sources import Source
from imagen_jax.data.records import MOST_BYTES

try:
  import fcntl
except ImportError:  # on Windows
  fcntl = None

NAME = "images"  # of the dataset, in the names of its files
_VERSION = 1  # of what is stored; another one makes other bytes


class Stopped(Exception):
  """Ends the work of a shard that nobody waits for any more."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """Describes the shards of an output.

  Attributes:
    count: the number of shards.
    filters: the conditions on records.
    duplicates: keeps records of equal pixels and captions.
    validation: the share of records in the split validation, 0 to 1.
    digests: a checksum of the files that each shard is made of.
  """

  count: int
  filters: Filters
  duplicates: bool
  validation: float
  digests: tuple[str, ...]

  @property
  def splits(self) -> tuple[str, ...]:
    """The names of the splits."""
    return ("train", "validation") if self.validation else ("train",)

  def split(self, key: str) -> str:
    """Returns the split of a record, which its key decides."""
    found = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8]
    share = int.from_bytes(found) / 2**64
    return "validation" if share < self.validation else "train"

  def to_json(self) -> str:
    """Returns the plan as it is stored."""
    return json.dumps({"version": _VERSION} | dataclasses.asdict(self))


def make_plan(
  source: Source, filters: Filters, *, duplicates: bool, validation: float
) -> Plan:
  """Plans the shards of a source: one for each of its parts."""
  if not 0 <= validation < 1:
    raise ValueError(f"validation is {validation}, expected 0 to less than 1")
  return Plan(
    len(source.parts),
    filters,
    duplicates,
    float(validation),
    tuple(source.parts),
  )


def keep_plan(plan: Plan, output: epath.Path) -> None:
  """Stores a plan in an output, or checks that it has the same one.

  Raises:
    ValueError: the output has other data, or another plan.
  """
  path, new = output / "plan.json", json.loads(plan.to_json())
  if not path.exists():
    if (output / "dataset_info.json").exists():
      raise ValueError(
        f"output {output} has a dataset that is not of this program, expected"
        " a new folder"
      )
    files.write(path, plan.to_json(), parents=True)
    return
  old = files.read_json(path, "plan")
  if old == new:
    return
  old = old if isinstance(old, dict) else {}
  changed = sorted(key for key in new if old.get(key) != new[key])
  what = (
    "files of the source" if {*changed} <= {"count", "digests"}
    else " and ".join(key for key in changed if key != "digests")
  )  # fmt: skip
  raise ValueError(
    f"output {output} was begun with other {what}, expected the same, or"
    " another output"
  )


@contextlib.contextmanager
def holding(output: epath.Path, *, alone: bool) -> Iterator[None]:
  """Keeps other processes of this machine from an output during the block.

  Who drops duplicates has to be alone: another process could write a shard
  again afterwards. Where files cannot be locked, as on gs://, nothing is kept
  from anyone.

  Args:
    output: the folder, which exists.
    alone: excludes all others, and removes what killed processes have left.
      With False only those are excluded that have to be alone.

  Raises:
    ValueError: another process is in the way.
  """
  if fcntl is None or files.is_remote(output):
    yield
    return
  lock = os.open(output, os.O_RDONLY)
  try:
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
      fcntl.flock(lock, kind | fcntl.LOCK_NB)  # ends with the process
    except BlockingIOError as error:
      raise ValueError(
        f"output {output} is in use by another process, expected --shard=I/N"
        " for processes that work at once, and --finish after all of them"
      ) from error
    except OSError:  # the file system has no locks
      alone = False
    left = [*output.glob(".*.part"), *output.glob("shards/.*.part")]
    for path in left if alone else ():
      path.unlink()
    yield
  finally:
    os.close(lock)


def shard_path(
  output: epath.Path, plan: Plan, split: str, i: int
) -> epath.Path:
  """Returns the file of a shard in a split, by TFDS's naming."""
  return output / f"{NAME}-{split}.array_record-{i:05}-of-{plan.count:05}"


def sidecar_path(output: epath.Path, i: int) -> epath.Path:
  """Returns the file that lists the records of a shard, written last."""
  return output / "shards" / f"{i:05}.json"


def write_shard(
  source: Source,
  plan: Plan,
  output: epath.Path,
  i: int,
  stop: threading.Event | None = None,
) -> None:
  """Writes shard i of every split and its sidecar, unless it is finished.

  The sidecar has `kept`, the (key, split, digest, bytes) of records, and
  `dropped`, the (key, kind, reason) of the others, in the order of the source.
  Its `files` are the lengths of the files in bytes.

  Raises:
    Stopped: `stop` was set meanwhile; the shard has to be written again.
    ValueError: a file cannot be written.
  """
  if sidecar_path(output, i).exists():
    return
  kept, dropped = [], []
  paths = {s: shard_path(output, plan, s, i) for s in plan.splits}
  with contextlib.ExitStack() as stack:
    write = {s: stack.enter_context(writer(p)) for s, p in paths.items()}
    for record in source.read(i):
      if stop is not None and stop.is_set():
        raise Stopped
      try:
        data, digest = _encode(record.key, plan.filters.check(record))
      except Dropped as error:
        dropped.append((record.key, error.kind, str(error)))
        continue
      split = plan.split(record.key)
      write[split](data)
      kept.append((record.key, split, digest, len(data)))
  lengths = {split: path.stat().length for split, path in paths.items()}
  sidecar = json.dumps({"kept": kept, "dropped": dropped, "files": lengths})
  files.write(sidecar_path(output, i), sidecar, parents=True)


def read_sidecar(output: epath.Path, i: int) -> dict[str, list]:
  """Reads what write_shard wrote last; ValueError if it is damaged."""
  path = sidecar_path(output, i)
  try:
    data = path.read_bytes()  # a shard of many records makes it large
  except OSError as error:
    raise ValueError(
      f"list of records {path} cannot be read: {files.reason(error)}"
    ) from error
  value: Any = files.parse_json(data, f"list of records {path}")
  if not isinstance(value, dict) or {*value} != {"kept", "dropped", "files"}:
    raise ValueError(
      f"list of records {path} is damaged: remove it, and its shard is"
      " written again"
    )
  return value


@contextlib.contextmanager
def writer(path: epath.Path) -> Iterator[Callable[[bytes], None]]:
  """Writes an ArrayRecord file, whole or not at all.

  Yields:
    A function that appends a record.

  Raises:
    ValueError: the file cannot be written, as on a full disk.
  """
  with files.writing(path) as local:
    file = array_record_module.ArrayRecordWriter(local, "group_size:1")

    def call(function: Callable, *args: bytes) -> None:
      try:
        function(*args)
      except RuntimeError as error:
        said = files.reason(error)
        raise ValueError(f"{path} cannot be written: {said}") from error

    try:
      yield lambda record: call(file.write, record)
    except BaseException:
      with contextlib.suppress(RuntimeError):
        file.close()
      raise
    call(file.close)


def _encode(key: str, kept: Kept) -> tuple[bytes, str]:
  """Encodes a record as TFDS stores it, and returns it with its digest."""
  example = tf_example_pb2.Example()
  feature = example.features.feature
  feature["image"].bytes_list.value.append(kept.image)
  feature["caption"].bytes_list.value.extend(t.encode() for t in kept.captions)
  feature["key"].bytes_list.value.append(key.encode("utf-8", "replace"))
  data = example.SerializeToString(deterministic=True)
  if len(data) > MOST_BYTES:
    raise Dropped(
      "large record",
      f"record has {len(data):,} bytes, expected at most {MOST_BYTES:,}",
    )
  return data, kept.digest
