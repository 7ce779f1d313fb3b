"""The metric files of a run: JSON lines and TensorBoard events.

Every record is written completely or not at all, on a disk and on gs://.
"""

import contextlib
import io
import itertools
import json
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from imagen_jax import files
from imagen_jax.files import reason

_COUNT = itertools.count()  # makes the names of event files unique
# The sizes at which a new event file and a new file of lines begin: on object
# stores each record rewrites its file.
_MAX_BYTES = 2**20
_MAX_LINES = 200


class AppendFile:
  """Appends records to a file, and never leaves a partial record there.

  Object stores cannot append. A file whose path has a scheme, such as gs://, is
  held in memory and rewritten with every record.

  Attributes:
    path: where the file is, or will be after the first record.
    size: bytes of the records that were written.
  """

  def __init__(self, path: epath.Path, content: bytes = b""):
    """Continues a file after `content`, the bytes that it begins with."""
    self.path, self.size = path, len(content)
    self._held = content if files.is_remote(path) else b""

  def append(self, record: bytes) -> None:
    """Writes a record; raises OSError or a store's error if it cannot."""
    if files.is_remote(self.path):
      self.path.write_bytes(self._held + record)
      self._held += record
      self.size = len(self._held)
      return
    # Unbuffered: a buffer would be flushed after a failed record was cut off.
    with open(self.path, "ab", buffering=0, opener=_open_no_link) as file:
      end = min(self.size, file.tell())  # less if the file was truncated
      file.truncate(end)  # removes what is left of a failed record
      rest = memoryview(record)
      try:
        while rest:
          rest = rest[file.write(rest) :]
      except OSError:
        with contextlib.suppress(OSError):
          file.truncate(end)
        raise
    self.size = end + len(record)


class PartedFile:
  """Appends JSON lines of steps to an object store, in files of 200 lines.

  After FILE come FILE.00020100 and so on, named by their first step. One
  file for a long run would be written again in full for every line.

  Attributes:
    path: the first file.
  """

  def __init__(self, path: epath.Path, last: int, log: Callable[[str], None]):
    """Opens the files, without the lines after step `last`; see open_lines."""
    self.path = path
    newest = path
    for first, part in sorted(_parts(path).items()):
      if first > last:
        part.unlink()
      else:
        newest = part
    content = _sound_lines(newest, last, log)
    self._file, self._lines = AppendFile(newest, content), content.count(b"\n")

  def append(self, record: bytes) -> None:
    """Writes the line of a step; raises as AppendFile.append does."""
    if self._lines >= _MAX_LINES:
      part = f"{self.path.name}.{_step(record):08}"
      self._file, self._lines = AppendFile(self.path.with_name(part)), 0
    self._file.append(record)
    self._lines += 1


def _parts(path: epath.Path) -> dict[int, epath.Path]:
  """Finds the files that continue a file of lines, by their first step."""
  if not path.parent.exists():
    return {}
  found = {}
  for other in path.parent.iterdir():
    name, _, step = other.name.rpartition(".")
    if name == path.name and step.isdecimal():
      found[int(step)] = other
  return found


def _open_no_link(path: str, flags: int) -> int:
  """Opens a file, but no link, and no pipe without a reader."""
  return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def open_lines(
  path: epath.Path, last: int, *, log: Callable[[str], None] = print
) -> AppendFile | PartedFile:
  """Opens JSON lines, without the lines after step `last` and a torn last line.

  On an object store they are in several files, see PartedFile. A file with
  foreign lines is renamed, which is logged; the new file starts with the valid
  lines.

  Args:
    path: the file, which need not exist.
    last: the step from which a run resumes.
    log: logs a line.

  Raises:
    ValueError: the path is a link or no file, or it cannot be read or written.
  """
  try:
    if files.is_remote(path):
      return PartedFile(path, last, log)
    return AppendFile(path, _sound_lines(path, last, log))
  except OSError as error:
    raise ValueError(f"{path} cannot be used: {reason(error)}") from error


def _sound_lines(
  path: epath.Path, last: int, log: Callable[[str], None]
) -> bytes:
  """Returns the lines that open_lines keeps, after it has removed others."""
  content = _read(path)
  *lines, torn = content.split(b"\n")  # the last is empty unless torn
  steps = [_step(line) for line in lines]
  kept = b"".join(
    line + b"\n"
    for line, step in zip(lines, steps, strict=True)
    if step is not None and step <= last
  )
  ours = b'{"step": '
  strange = steps.count(None) + (torn[: len(ours)] != ours[: len(torn)])
  if strange:
    name = _move_aside(path)
    log(
      f"{path} has {strange} line(s) that are no metrics; it is renamed "
      f"{name}, and its {kept.count(10)} valid line(s) are kept"
    )
  if files.is_remote(path):
    if kept != content:
      path.write_bytes(kept)
  elif kept != content or _has_other_names(path):
    files.write(path, kept)
  return kept


def _read(path: epath.Path) -> bytes:
  """Reads a file, or b"" if it is absent; ValueError for a link or no file."""
  if files.is_remote(path):
    return path.read_bytes() if path.exists() else b""
  if not os.path.lexists(path):
    return b""
  if not stat.S_ISREG(os.lstat(path).st_mode):
    raise ValueError(
      f"{path} is a link, folder or device, expected a file of the run's own; "
      "remove it"
    )
  with open(path, "rb", opener=_open_no_link) as file:
    return file.read()


def _has_other_names(path: epath.Path) -> bool:
  """Returns True if a file has another name too, by a hard link."""
  return os.path.lexists(path) and os.lstat(path).st_nlink > 1


def _move_aside(path: epath.Path) -> str:
  """Renames a file to metrics.jsonl.damaged or similar; returns the name."""
  name, count = f"{path.name}.damaged", 1
  while path.with_name(name).exists():
    count += 1
    name = f"{path.name}.damaged-{count}"
  path.rename(path.with_name(name))
  return name


class EventFiles:
  """Appends a run's scalars and images to TensorBoard's event files.

  The files are those of TensorFlow's `tf.summary`, written without TensorFlow.
  """

  def __init__(self, folder: str | os.PathLike):
    self._folder = epath.Path(folder)
    self._file: AppendFile | None = None

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends the numbers of a step; raises as AppendFile.append does."""
    values = (scalar_pb(*item).value[0] for item in scalars.items())
    self._append(Event(step=step, summary=Summary(value=values)))

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Appends a uint8 image [H, W, 3]; raises as AppendFile.append does."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, format="PNG")
    height, width = (str(size).encode() for size in image.shape[:2])
    data = [width, height, png.getvalue()]
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(data))])
    value = Summary.Value(
      tag=name,
      tensor=TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=data),
      metadata=image_metadata.create_summary_metadata(None, None),
    )
    self._append(Event(step=step, summary=Summary(value=[value])))

  def _append(self, event: Event) -> None:
    """Appends one event, in a new file if the current one is full."""
    records = [event]
    if self._file is None or self._file.size > _MAX_BYTES:
      # The name cannot be guessed, so that nobody can plant a link there.
      where = f"{socket.gethostname()}.{os.getpid()}.{next(_COUNT):04}"
      where += f".{secrets.token_hex(8)}"
      name = f"events.out.tfevents.{int(time.time()):010}.{where}"
      self._file = AppendFile(self._folder / name)
    if not self._file.size:
      records.insert(0, Event(file_version="brain.Event:2"))
    data = io.BytesIO()
    for record in records:
      record.wall_time = time.time()
      RecordWriter(data).write(record.SerializeToString())
    self._file.append(data.getvalue())


def _step(line: bytes) -> int | None:
  """Returns the step of a line of metrics; None if it is no such line."""
  try:
    step = json.loads(line)["step"]
  except (ValueError, LookupError, TypeError, RecursionError):
    return None
  return step if type(step) is int else None
