"""Captions of records: read, and checked for words that a flip would belie."""

import re
from collections.abc import Mapping

import numpy as np

TEMPLATE = "{}"  # a caption alone
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


def captions_of(record: Mapping) -> list[str]:
  """Returns a record's captions without blank ones, at least one.

  Raises:
    ValueError: all captions are missing or blank, or one is not text.
  """
  if "caption" not in record:
    raise ValueError("it has no caption")
  found = record["caption"]
  many = isinstance(found, list | tuple | np.ndarray)
  texts = [_text(caption) for caption in (found if many else [found])]
  if not (texts := [text for text in texts if text.strip()]):
    raise ValueError("caption is empty")
  return texts


def check_template(key: str, template: str) -> None:
  """Raises ValueError for a template without a place for the text."""
  if TEMPLATE not in template:
    raise ValueError(
      f"{key} is {template!r}, expected a text with {TEMPLATE}, such as"
      " 'a photo of a {}'"
    )


def names_side(caption: str) -> bool:
  """Tests for a word that begins with left or right."""
  return _SIDES.search(caption) is not None


def _text(caption: str | bytes) -> str:
  """Returns a caption as str; ValueError if it is not text."""
  if not isinstance(caption, bytes | str):
    kind = type(caption).__name__
    raise ValueError(f"caption is {kind}, expected text")
  if isinstance(caption, str):
    return caption
  try:
    return caption.decode()
  except UnicodeDecodeError as error:
    raise ValueError("caption is not UTF-8") from error
