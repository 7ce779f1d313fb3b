"""Appends to the files of a run's metrics: JSON lines and TensorBoard's events.

Every record is written whole or not at all, on a disk and on gs://.
"""

import contextlib
import io
import itertools
import json
import os
import socket
import time
from collections.abc import Mapping

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

_COUNT = itertools.count()  # keeps the names of a process's event files apart
# An event file of this size is followed by another: on object stores each
# record writes its file anew.
_MAX_BYTES = 4 * 2**20


class AppendFile:
  """Appends records to a file; none is ever left there in part.

  Object stores cannot append: a file whose path has a scheme, as gs:// has, is
  held in memory and written anew with every record.

  Attributes:
    path: Where the file is, or will be after the first record.
    size: Bytes of the records that were written.
  """

  def __init__(self, path: epath.Path, content: bytes = b""):
    """Continues a file after `content`, the bytes that it begins with."""
    self.path, self.size = path, len(content)
    self._held = content if _is_remote(path) else b""

  def append(self, record: bytes) -> None:
    """Writes a record; raises OSError, or what a store raises, if it cannot."""
    if _is_remote(self.path):
      self.path.write_bytes(self._held + record)
      self._held += record
      self.size = len(self._held)
      return
    end = self.size
    try:
      with self.path.open("ab") as file:
        end = min(end, file.tell())  # if somebody cut the file
        file.truncate(end)  # what of a record that failed is left
        file.write(record)
    except OSError:
      with contextlib.suppress(OSError):
        os.truncate(self.path, end)
      raise
    self.size = end + len(record)


def open_lines(path: epath.Path, last: int) -> AppendFile:
  """Opens JSON lines, and drops those after step `last` and a torn one."""
  content = path.read_bytes() if path.exists() else b""
  lines = content.splitlines(keepends=True)
  while lines and not _is_up_to(lines[-1], last):
    lines.pop()
  kept = b"".join(lines)
  if kept != content:
    if _is_remote(path):
      path.write_bytes(kept)
    else:
      os.truncate(path, len(kept))
  return AppendFile(path, kept)


class EventFiles:
  """Appends a run's scalars and images to TensorBoard's event files.

  They are as TensorFlow's `tf.summary` writes them, without TensorFlow.
  """

  def __init__(self, folder: str | os.PathLike):
    self._folder = epath.Path(folder)
    self._file: AppendFile | None = None

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Appends the numbers of a step; raises as AppendFile.append."""
    values = (scalar_pb(*item).value[0] for item in scalars.items())
    self._append(Event(step=step, summary=Summary(value=values)))

  def write_image(self, step: int, name: str, image: np.ndarray) -> None:
    """Appends uint8 [H, W, 3] of a step; raises as AppendFile.append."""
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
    records = [event]
    if self._file is None or self._file.size > _MAX_BYTES:
      where = f"{socket.gethostname()}.{os.getpid()}.{next(_COUNT):04}"
      name = f"events.out.tfevents.{int(time.time()):010}.{where}"
      self._file = AppendFile(self._folder / name)
    if not self._file.size:
      records.insert(0, Event(file_version="brain.Event:2"))
    data = io.BytesIO()
    for record in records:
      record.wall_time = time.time()
      RecordWriter(data).write(record.SerializeToString())
    self._file.append(data.getvalue())


def _is_remote(path: epath.Path) -> bool:
  return "://" in os.fspath(path)


def _is_up_to(line: bytes, step: int) -> bool:
  """Returns True for a whole line of a step that is not after this one."""
  try:
    return json.loads(line)["step"] <= step and line.endswith(b"\n")
  except (ValueError, KeyError, TypeError):
    return False  # of a run that was killed while it wrote
