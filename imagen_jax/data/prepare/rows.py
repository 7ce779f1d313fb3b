"""Records of a source before they are checked, and the columns they have."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from imagen_jax import files

CAPTION_COLUMNS = ("caption", "captions", "text", "texts")


@dataclasses.dataclass(frozen=True)
class Record:
  """Holds one record as its source has it.

  Attributes:
    key: the record's name, unique in a source as far as the source's names are.
    image: the bytes of an image file; None if there are none.
    captions: the alternatives, perhaps blank.
    columns: the source's other values, by name, for thresholds.
    reason: why the record cannot be used; None if it may be used.
  """

  key: str
  image: bytes | None = None
  captions: tuple[str, ...] = ()
  columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reason: str | None = None


def choose_column(
  columns: Iterable[str],
  given: str | None,
  defaults: Iterable[str],
  flag: str,
  where: str,
) -> str:
  """Returns the name of the column to read.

  Args:
    columns: the columns that the file has.
    given: the name that the user gave; None chooses among the defaults.
    defaults: the names to look for.
    flag: the flag that names the column, for messages.
    where: the file, for messages.

  Raises:
    ValueError: the file has no such column, or several of the defaults.
  """
  columns, defaults = list(columns), list(defaults)
  shown = ", ".join(files.quote(name, 40) for name in columns[:20]) or "none"
  if given is not None:
    if given not in columns:
      raise ValueError(f"{where} has no column {given!r}, only {shown}")
    return given
  found = [name for name in defaults if name in columns]
  if len(found) != 1:
    raise ValueError(
      f"{where} has the columns {shown}, expected one of"
      f" {', '.join(defaults)}, or --{flag} to name one"
    )
  return found[0]


def checksum(description: Any) -> str:
  """Returns a checksum of what describes a part of a source, as JSON."""
  text = json.dumps(description, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_captions(value: Any) -> tuple[str, ...]:
  """Returns a column's captions: of a text, of a list of texts, or of None.

  Raises:
    ValueError: a caption is not text.
  """
  if value is None:
    return ()
  found = value if isinstance(value, list | tuple) else [value]
  for caption in found:
    if not isinstance(caption, str):
      kind = type(caption).__name__
      raise ValueError(f"caption is {kind}, expected text")
  return tuple(found)


def decode_text(data: bytes, name: str) -> str:
  """Decodes UTF-8, with or without a byte-order mark; else ValueError."""
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} is not UTF-8 text") from error
  if "\0" in text:
    raise ValueError(f"{name} is not UTF-8 text")
  return text
