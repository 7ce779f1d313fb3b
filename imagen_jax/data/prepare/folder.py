"""Folders of images, with metadata files or with a text beside each image.

The metadata files are those of Hugging Face's ImageFolder: metadata.jsonl,
.csv or .parquet, whose rows name image files relative to their own folder.
"""

import csv
import dataclasses
import io
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from imagen_jax import files
from imagen_jax.data.prepare.rows import (
  CAPTION_COLUMNS,
  Record,
  checksum,
  choose_column,
  decode_text,
  read_captions,
)  # fmt: skip

IMAGES = (
  ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif",
  ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".heic",
  ".heif",
)  # fmt: skip
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FILE_COLUMNS = ("file_name", "image_file_name")


@dataclasses.dataclass(frozen=True)
class _Entry:
  """Describes where a record's parts lie, relative to the folder."""

  key: str
  image: str | None = None
  text: str | None = None  # the file of the captions
  captions: tuple[str, ...] = ()
  columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reason: str | None = None


class Folder:
  """Reads a folder of images.

  Args:
    path: the folder.
    names: the files in it, sorted, relative to it.
    per_part: the number of records in a part.
    caption: the column of captions in metadata files; None finds it.

  Attributes:
    parts: a checksum of each part's names, captions and columns.

  Raises:
    ValueError: a metadata file cannot be used.
  """

  def __init__(
    self,
    path: epath.Path,
    names: list[str],
    per_part: int,
    caption: str | None = None,
  ):
    self._path = path
    metadata = [name for name in names if posixpath.basename(name) in METADATA]
    if metadata:
      entries = _with_metadata(path, names, metadata, caption)
    else:
      entries = _with_texts(names)
    entries.sort(key=lambda entry: entry.key)
    self._groups = [
      entries[i : i + per_part] for i in range(0, len(entries), per_part)
    ]
    self.parts = [
      checksum([dataclasses.astuple(entry) for entry in group])
      for group in self._groups
    ]

  def read(self, part: int) -> Iterator[Record]:
    """Reads the records of a part."""
    for entry in self._groups[part]:
      yield self._read(entry)

  def _read(self, entry: _Entry) -> Record:
    """Reads the files of a record."""
    if entry.reason:
      return Record(entry.key, reason=entry.reason)
    captions = entry.captions
    try:
      if entry.text is not None:
        text = decode_text(self._bytes(entry.text), entry.text)
        captions = tuple(line.strip() for line in text.split("\n"))
      return Record(
        entry.key, self._bytes(entry.image), captions, entry.columns
      )
    except ValueError as error:
      return Record(entry.key, reason=str(error))

  def _bytes(self, name: str) -> bytes:
    """Reads a file; ValueError if that fails."""
    try:
      return (self._path / name).read_bytes()
    except FileNotFoundError as error:
      raise ValueError("caption without an image: no such file") from error
    except OSError as error:
      raise ValueError(
        f"{name} cannot be read: {files.reason(error)}"
      ) from error


def _with_texts(names: list[str]) -> list[_Entry]:
  """Finds the images of a folder, and the text beside each."""
  stems = {
    posixpath.splitext(name)[0]: name
    for name in names
    if name.lower().endswith(".txt")
  }
  entries, used = [], set()
  for name in names:
    stem, ending = posixpath.splitext(name)
    if ending.lower() not in IMAGES:
      continue
    used.add(stem)
    if stem in stems:
      entries.append(_Entry(name, name, stems[stem]))
    else:
      reason = f"image without a caption: no file {stem}.txt"
      entries.append(_Entry(name, reason=reason))
  for stem, name in stems.items():
    if stem not in used:
      reason = "caption without an image: no image of this name"
      entries.append(_Entry(name, reason=reason))
  return entries


def _with_metadata(
  path: epath.Path, names: list[str], metadata: list[str], caption: str | None
) -> list[_Entry]:
  """Finds the images that rows of metadata name, and those that none names."""
  present, entries = set(names), []
  for name in metadata:
    where, home = f"metadata {path / name}", posixpath.dirname(name)
    rows = _read_rows(path / name, where)
    if not rows:
      continue
    columns = list(dict.fromkeys(column for row in rows for column in row))
    column = choose_column(columns, caption, CAPTION_COLUMNS, "caption", where)
    found = [column for column in _FILE_COLUMNS if column in columns]
    if not found:
      raise ValueError(
        f"{where} has no column file_name, expected one that names the images"
      )
    for number, row in enumerate(rows, 1):
      entries.append(
        _row_entry(row, found[0], column, home, present, f"{name}:{number}")
      )
  named = {entry.key for entry in entries}
  entries += [
    _Entry(name, reason="image without a caption: no row of metadata names it")
    for name in names
    if posixpath.splitext(name)[1].lower() in IMAGES and name not in named
  ]
  return entries


def _row_entry(
  row: Mapping[str, Any],
  file_column: str,
  caption_column: str,
  home: str,
  present: set[str],
  place: str,
) -> _Entry:
  """Turns a row of metadata into an entry."""
  file = row.get(file_column)
  if not isinstance(file, str) or not file:
    return _Entry(place, reason=f"caption without an image: no {file_column}")
  key = posixpath.normpath(posixpath.join(home, file.replace("\\", "/")))
  if key.startswith(("/", "../")):
    reason = f"{file_column} is outside of the folder"
    return _Entry(f"{place} {files.quote(file)}", reason=reason)
  if key not in present:
    return _Entry(key, reason="caption without an image: no such file")
  try:
    captions = read_captions(row.get(caption_column))
  except ValueError as error:
    return _Entry(key, reason=str(error))
  columns = {
    name: value
    for name, value in row.items()
    if isinstance(value, str | int | float)
    and name not in (file_column, caption_column)
  }
  return _Entry(key, key, None, captions, columns)


def _read_rows(path: epath.Path, where: str) -> list[dict[str, Any]]:
  """Reads the rows of a metadata file."""
  if path.suffix == ".jsonl":
    rows = []
    for number, line in enumerate(files.read_lines(path, "metadata"), 1):
      if line:
        row = files.parse_json(line, f"line {number} of {where}")
        if not isinstance(row, dict):
          raise ValueError(f"line {number} of {where} holds no object")
        rows.append(row)
    return rows
  try:
    data = path.read_bytes()
  except OSError as error:
    raise ValueError(
      f"{where} cannot be read: {files.reason(error)}"
    ) from error
  if path.suffix == ".csv":
    text = io.StringIO(decode_text(data, where), newline="")
    try:
      return list(csv.DictReader(text))
    except csv.Error as error:
      raise ValueError(f"{where} is not CSV: {error}") from error
  # Imported here, because only these files need it.
  import pyarrow
  from pyarrow import parquet

  try:
    return parquet.read_table(io.BytesIO(data)).to_pylist()
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    said = str(error).split("\n")[0][:200]
    raise ValueError(f"{where} is not a parquet file: {said}") from error
