"""Tokenizers: prompts to ids and masks of one length."""

import hashlib
import os
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging
from etils import epath

from imagen_jax import files
from imagen_jax.text.pieces import SentencePieces, WordPieces
from imagen_jax.types import SpecialIds

# The most texts that warnings of one kind name, each once. A dataset may have
# millions of such captions.
_NAMED = 20
_CUT, _UNKNOWN = "are cut", "have what the text encoder does not know"
_PARTS = 5  # parts of a prompt that one warning names


def check_prompts(prompts: Sequence[str]) -> None:
  """Raises ValueError, naming the offender, unless all prompts have words."""
  if isinstance(prompts, (str, bytes)):
    raise ValueError("prompts is one string, expected a list of strings")
  for i, prompt in enumerate(prompts):
    if not isinstance(prompt, str):
      kind = type(prompt).__name__
      raise ValueError(f"prompt {i} is {kind}, expected a string")
    if not prompt.strip():
      raise ValueError(f"prompt {i} is empty")
    try:
      prompt.encode("utf-8")
    except UnicodeEncodeError:
      raise ValueError(f"prompt {i} is not valid Unicode text") from None


def empty_prompt(
  special: SpecialIds, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the empty prompt with its padding: ids and mask [1, length]."""
  count = len(special.empty)
  ids = np.full((1, length), special.pad, np.int32)
  ids[:, :count] = special.empty
  return ids, np.arange(length)[None] < count


class Tokenizer:
  """Encodes n prompts into ids int32 and mask bool [n, length], True = real.

  A longer prompt loses its end but keeps the id after it, such as </s>. A
  warning logs where it is cut. Another warning logs the parts of a prompt that
  have no piece: the encoder cannot distinguish them. Many threads may call it
  at once, and it can be pickled for other processes.

  Args:
    path: the vocabulary's file, which may begin with ~ or gs://.
    length: the number of tokens of every row, with the special ones. At least
      one more than those.
    lowercase: lowercases and strips prompts first. The normalisation of most
      vocabularies does neither.
    parse: makes the pieces from the path and the bytes of the file; T5's by
      default.

  Attributes:
    length: the number of tokens of every row.
    lowercase: whether prompts are lowercased and stripped.
    fingerprint: the SHA-256 of the file, in hexadecimal.
    pieces_sha256: the SHA-256 of the pieces alone; None for SentencePiece.

  Raises:
    ValueError: length is too small, or the file cannot be used.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    length: int,
    *,
    lowercase: bool = False,
    parse: Callable[
      [str | os.PathLike, bytes], SentencePieces | WordPieces
    ] = SentencePieces,
  ):
    self.length = length
    self.lowercase = lowercase
    data = _read(path)
    self._pieces = parse(path, data)
    least = 1 + len(self._pieces.special.empty)
    if length < least:
      raise ValueError(
        f"text length is {length}, expected at least {least}: a word and the "
        "ids that begin and end a text"
      )
    self.pieces_sha256 = self._pieces.sha256
    self.fingerprint = hashlib.sha256(data).hexdigest()
    self._named: dict[str, set[str]] = {_CUT: set(), _UNKNOWN: set()}

  @property
  def vocab_size(self) -> int:
    """The number of pieces, with the special ones."""
    return self._pieces.size

  def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Encodes prompts.

    Raises:
      ValueError: a prompt is empty or is not valid text.
    """
    check_prompts(prompts)
    special = self._pieces.special
    room = self.length - len(special.empty)
    ids = np.full((len(prompts), self.length), special.pad, np.int32)
    mask = np.zeros(ids.shape, bool)
    for i, prompt in enumerate(prompts):
      prompt = prompt.lower().strip() if self.lowercase else prompt
      pieces = self._pieces.encode(prompt)
      if not pieces:  # such as zero-width spaces, which normalisation removes
        raise ValueError(f"prompt {i} is empty")
      if len(pieces) > room:
        self._report_cut(prompt, pieces, room)
        pieces = pieces[:room]
      if special.unknown in pieces:
        self._report_unknown(prompt, len(pieces))
      row = [*special.before, *pieces, special.after]
      ids[i, : len(row)] = row
      mask[i, : len(row)] = True
    return ids, mask

  def decode(self, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """Decodes ids and mask [n, length] to texts, as normalised and cut."""
    return [
      self._pieces.decode(row[real].tolist())
      for row, real in zip(ids, mask, strict=True)
    ]

  def count_cut(self, prompts: Sequence[str]) -> int:
    """Counts the prompts that lose their end."""
    room = self.length - len(self._pieces.special.empty)
    normalised = (p.lower().strip() if self.lowercase else p for p in prompts)
    return sum(len(self._pieces.encode(p)) > room for p in normalised)

  def _report_cut(self, prompt: str, pieces: list[int], room: int) -> None:
    """Warns that a prompt is cut."""
    if self._is_new(_CUT, prompt):
      logging.warning(
        "prompt %s is %d tokens long, %d fit: cut after %s",
        files.quote(prompt),
        len(pieces) + self.length - room,
        self.length,
        repr(self._pieces.decode(pieces[:room])[-40:]),
      )

  def _report_unknown(self, prompt: str, count: int) -> None:
    """Warns of the parts of a prompt, up to its cut, that have no piece."""
    if self._is_new(_UNKNOWN, prompt):
      parts = list(dict.fromkeys(self._pieces.unknown(prompt, count)))
      named = ", ".join(files.quote(part, 40) for part in parts[:_PARTS])
      logging.warning(
        "prompt %s: the text encoder does not know %s%s",
        files.quote(prompt),
        named,
        f" and {len(parts) - _PARTS} more" if len(parts) > _PARTS else "",
      )

  def _is_new(self, what: str, prompt: str) -> bool:
    """Decides whether to warn: once per text, and only of the first texts."""
    # If two threads arrive here with one text, it is named twice: harmless.
    named = self._named[what]
    if prompt in named or len(named) > _NAMED:
      return False
    named.add(prompt)
    if len(named) > _NAMED:
      logging.warning(
        "More than %d prompts %s; further ones are not reported.", _NAMED, what
      )
      return False
    return True


def _read(path: str | os.PathLike) -> bytes:
  """Reads the bytes of a file, which may be on gs://."""
  try:
    return epath.Path(files.expand(path)).read_bytes()
  except Exception as error:  # object stores raise many kinds
    raise ValueError(
      f"vocabulary {path} cannot be read: {files.reason(error)}"
    ) from error
