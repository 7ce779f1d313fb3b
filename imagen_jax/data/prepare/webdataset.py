"""Webdataset tars, as img2dataset and others write them.

A sample is a run of members that have the same name up to the first dot of the
file name: an image, a .txt with its caption, a .json with more columns.
"""

import tarfile
from collections.abc import Iterator
from typing import Any

from etils import epath

from imagen_jax import files
from imagen_jax.data.prepare.folder import IMAGES
from imagen_jax.data.prepare.rows import (
  Record,
  checksum,
  decode_text,
  read_captions,
)

_MOST_TEXT = 2**22  # bytes of a .txt or .json
_MOST_IMAGE = 2**28  # bytes of an image file


class WebDataset:
  """Reads tars: one tar is one part.

  Numbers of tars may be missing, and so may the _stats.json of a tar.

  Args:
    path: the folder of the tars.
    names: the tars, sorted, relative to the folder.
    caption: the column of the .json that holds the captions; None takes the
      .txt, or the column caption where there is no .txt.

  Attributes:
    parts: a checksum of each tar's name and size.
  """

  def __init__(
    self, path: epath.Path, names: list[str], caption: str | None = None
  ):
    self._path, self._names, self._caption = path, names, caption
    self.parts = [
      checksum([name, (path / name).stat().length]) for name in names
    ]

  def read(self, part: int) -> Iterator[Record]:
    """Reads the samples of a tar, then the downloads that failed."""
    name = self._names[part]
    stem, count = name.removesuffix(".tar"), 0
    try:
      with (
        (self._path / name).open("rb") as file,
        tarfile.open(fileobj=file, mode="r|") as tar,
      ):
        for key, members in _samples(tar):
          count += 1
          yield self._record(f"{stem}/{key}", members)
        if not _has_end(self._path / name):
          raise tarfile.ReadError("it has no end marker")
    except (tarfile.TarError, OSError, EOFError) as error:
      # The samples before the damage are complete.
      reason = f"tar cannot be read beyond {count:,} samples"
      said = files.reason(error)
      yield Record(name, reason=f"{reason} ({said})")
    yield from _failed(self._path / f"{stem}.parquet", stem)

  def _record(self, key: str, members: dict[str, bytes | str]) -> Record:
    """Makes a record of the members of a sample, by their endings."""
    images = [end for end in members if f".{end.rpartition('.')[2]}" in IMAGES]
    try:
      columns = _columns(members.get("json"))
      if self._caption is not None:
        captions = read_captions(columns.get(self._caption))
      elif "txt" in members:
        captions = (decode_text(_sized(members["txt"]), "caption").strip(),)
      else:
        captions = read_captions(columns.get("caption"))
      if not images:
        raise ValueError("caption without an image: no image in the sample")
      if not captions:
        raise ValueError("image without a caption: no text in the sample")
      return Record(key, _sized(members[images[0]]), captions, columns)
    except ValueError as error:
      return Record(key, reason=str(error))


def _has_end(path: epath.Path) -> bool:
  """Tests for the two empty blocks that end a tar; tarfile needs none."""
  with path.open("rb") as file:
    file.seek(max(0, path.stat().length - 1024))
    return file.read() == bytes(1024)


def _samples(
  tar: tarfile.TarFile,
) -> Iterator[tuple[str, dict[str, bytes | str]]]:
  """Yields (key, members by ending); a str explains why a member is unread."""
  key, members = None, {}
  for member in tar:
    if not member.isfile():
      continue
    folder, slash, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    ending, stem = ending.lower(), f"{folder}{slash}{stem}"
    if key is not None and (stem != key or ending in members):
      yield key, members
      members = {}
    key = stem
    most = _MOST_TEXT if ending in ("txt", "json") else _MOST_IMAGE
    if member.size > most:
      members[ending] = (
        f"{ending} has {member.size:,} bytes, expected at most {most:,}"
      )
    else:
      data = tar.extractfile(member).read()
      if len(data) < member.size:
        raise tarfile.ReadError("the file ends within a sample")
      members[ending] = data
  if key is not None:
    yield key, members


def _sized(data: bytes | str) -> bytes:
  """Returns a member's bytes; ValueError if it was too large to read."""
  if isinstance(data, str):
    raise ValueError(data)
  return data


def _columns(data: bytes | str | None) -> dict[str, Any]:
  """Parses a sample's .json; without one there are no columns."""
  if data is None:
    return {}
  value = files.parse_json(_sized(data), "json of the sample")
  if not isinstance(value, dict):
    raise ValueError("json of the sample holds no object")
  return value


def _failed(path: epath.Path, stem: str) -> Iterator[Record]:
  """Yields the samples that img2dataset lists beside a tar as failed."""
  if not path.exists():
    return
  # Imported here, because only these files need it.
  import pyarrow
  from pyarrow import parquet

  try:
    with path.open("rb") as file:
      table = parquet.ParquetFile(file)
      names = {"key", "status", "error_message"} & {*table.schema_arrow.names}
      rows = table.read(sorted(names)).to_pylist() if names else []
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    said = str(error).split("\n")[0][:200]
    yield Record(path.name, reason=f"list of samples cannot be read ({said})")
    return
  for row in rows:
    if (reason := download_failure(row)) is not None:
      yield Record(f"{stem}/{row.get('key')}", reason=reason)


def download_failure(row: dict[str, Any]) -> str | None:
  """Returns why img2dataset has no image for a row; None if it has one."""
  status = row.get("status")
  if not isinstance(status, str) or status == "success":
    return None
  said = " ".join(str(row.get("error_message") or "").split())[:120]
  return status.replace("_", " ") + (f" ({said})" if said else "")
