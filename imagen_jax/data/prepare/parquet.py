"""Parquet files whose rows hold the bytes of images."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from imagen_jax import files
from imagen_jax.data.prepare.rows import (
  CAPTION_COLUMNS,
  Record,
  checksum,
  choose_column,
  read_captions,
)  # fmt: skip
from imagen_jax.data.prepare.webdataset import download_failure

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")


class Parquet:
  """Reads parquet files: a part is one or more row groups of a file.

  Args:
    path: the folder of the files.
    names: the files, sorted, relative to the folder.
    per_part: row groups are joined until a part has so many rows.
    image: the column of images, bytes or {bytes, path}; None finds it.
    caption: the column of captions; None finds it.

  Attributes:
    parts: a checksum of each part's file, its size, rows and columns.

  Raises:
    ValueError: a file is not parquet, or lacks a column.
  """

  def __init__(
    self,
    path: epath.Path,
    names: list[str],
    per_part: int,
    image: str | None = None,
    caption: str | None = None,
  ):
    self._path, self._spans, self.parts = path, [], []
    for name in names:
      where = f"parquet file {path / name}"
      size = (path / name).stat().length
      with (path / name).open("rb") as file:
        table = _open(file, where)
        columns = table.schema_arrow.names
        chosen = (
          choose_column(columns, image, _IMAGE_COLUMNS, "image", where),
          choose_column(columns, caption, CAPTION_COLUMNS, "caption", where),
        )
        counts = [
          table.metadata.row_group(i).num_rows
          for i in range(table.metadata.num_row_groups)
        ]
      first = row = rows = 0
      for i, count in enumerate(counts):
        rows += count
        if rows >= per_part or i + 1 == len(counts):
          self._spans.append((name, range(first, i + 1), row, *chosen))
          self.parts.append(checksum([name, size, row, rows, *chosen]))
          first, row, rows = i + 1, row + rows, 0

  def read(self, part: int) -> Iterator[Record]:
    """Reads the rows of a part."""
    name, groups, row, image, caption = self._spans[part]
    try:
      with (self._path / name).open("rb") as file:
        table = _open(file, f"parquet file {self._path / name}")
        batches = table.iter_batches(batch_size=64, row_groups=list(groups))
        for batch in batches:
          for values in batch.to_pylist():
            yield _record(f"{name}:{row}", values, image, caption)
            row += 1
    except OSError as error:  # also pyarrow's, of damaged data
      said = files.reason(error)
      reason = f"rows from {row:,} on cannot be read ({said})"
      yield Record(name, reason=reason)


def _open(file: Any, where: str) -> Any:
  """Opens a parquet file; ValueError if it is none."""
  # Imported here, because only these files need it.
  import pyarrow
  from pyarrow import parquet

  try:
    return parquet.ParquetFile(file)
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    said = str(error).split("\n")[0][:200]
    raise ValueError(f"{where} cannot be read: {said}") from error


def _record(
  key: str, values: dict[str, Any], image: str, caption: str
) -> Record:
  """Makes a record of a row."""
  if (reason := download_failure(values)) is not None:
    return Record(key, reason=reason)
  data = values.pop(image)
  if isinstance(data, dict):
    data = data.get("bytes")
  try:
    captions = read_captions(values.pop(caption))
    if data is None:
      raise ValueError("caption without an image: no bytes in the row")
    if not isinstance(data, bytes):
      raise ValueError(f"image is {type(data).__name__}, expected bytes")
    if not captions:
      raise ValueError("image without a caption: no text in the row")
  except ValueError as error:
    return Record(key, reason=str(error))
  return Record(key, data, captions, values)
