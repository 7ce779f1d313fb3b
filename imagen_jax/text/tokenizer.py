"""SentencePiece tokenizer with T5's ids: pad = 0, </s> = 1, unk = 2, no BOS."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import sentencepiece
from absl import logging
from etils import epath

from imagen_jax import files

_SPECIAL = {"pad": 0, "eos": 1, "unk": 2}
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


def empty_prompt(length: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the empty prompt, </s> and padding: ids and mask [1, length]."""
  ids = np.full((1, length), _SPECIAL["pad"], np.int32)
  ids[:, 0] = _SPECIAL["eos"]
  return ids, ids == _SPECIAL["eos"]


class Tokenizer:
  """Encodes n prompts into ids int32 and mask bool [n, length], True = real.

  A longer prompt loses its end but keeps </s>. A warning logs where it is cut.
  Another warning logs the parts of a prompt that have no piece: the encoder
  cannot distinguish them. Many threads may call it at once, and it can be
  pickled for other processes.

  Args:
    path: the model file, which may begin with ~ or gs://.
    length: the number of tokens of every row, at least 2.
    lowercase: lowercases and strips prompts first. The normalisation of most
      vocabularies does neither.

  Attributes:
    length: the number of tokens of every row.
    fingerprint: the SHA-256 of the model file, in hexadecimal.

  Raises:
    ValueError: length is less than 2, or the model file cannot be used.
  """

  def __init__(
    self, path: str | os.PathLike, length: int, *, lowercase: bool = False
  ):
    if length < 2:
      raise ValueError(
        f"text length is {length}, expected at least 2: a word and </s>"
      )
    self.length = length
    self._lowercase = lowercase
    data = _read(path)
    self._model = _parse(path, data)
    self.fingerprint = hashlib.sha256(data).hexdigest()
    self._named: dict[str, set[str]] = {_CUT: set(), _UNKNOWN: set()}

  @property
  def vocab_size(self) -> int:
    """The number of pieces, with the special ones."""
    return self._model.piece_size()

  def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Encodes prompts.

    Raises:
      ValueError: a prompt is empty or is not valid text.
    """
    check_prompts(prompts)
    ids = np.full((len(prompts), self.length), _SPECIAL["pad"], np.int32)
    mask = np.zeros(ids.shape, bool)
    for i, prompt in enumerate(prompts):
      prompt = prompt.lower().strip() if self._lowercase else prompt
      pieces = self._model.encode(prompt)
      if not pieces:  # such as zero-width spaces, which normalisation removes
        raise ValueError(f"prompt {i} is empty")
      if len(pieces) >= self.length:
        self._report_cut(prompt, pieces)
        pieces = pieces[: self.length - 1]
      if _SPECIAL["unk"] in pieces:
        self._report_unknown(prompt, pieces)
      ids[i, : len(pieces) + 1] = pieces + [_SPECIAL["eos"]]
      mask[i, : len(pieces) + 1] = True
    return ids, mask

  def decode(self, ids: np.ndarray, mask: np.ndarray) -> list[str]:
    """Decodes ids and mask [n, length] to texts, as normalised and cut."""
    return [
      self._model.decode(row[real].tolist())
      for row, real in zip(ids, mask, strict=True)
    ]

  def _report_cut(self, prompt: str, pieces: list[int]) -> None:
    """Warns that a prompt is cut."""
    if self._is_new(_CUT, prompt):
      logging.warning(
        "prompt %s is %d tokens long, %d fit: cut after %s",
        files.quote(prompt),
        len(pieces) + 1,
        self.length,
        repr(self._model.decode(pieces[: self.length - 1])[-40:]),
      )

  def _report_unknown(self, prompt: str, pieces: list[int]) -> None:
    """Warns of the parts of a prompt, up to its cut, that have no piece."""
    if self._is_new(_UNKNOWN, prompt):
      texts = self._model.encode(prompt, out_type=str)
      unknown = [t for t, i in zip(texts, pieces) if i == _SPECIAL["unk"]]
      parts = list(dict.fromkeys(unknown))
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


def _parse(
  path: str | os.PathLike, data: bytes
) -> sentencepiece.SentencePieceProcessor:
  """Parses a model file; raises ValueError unless it has T5's ids."""
  model = sentencepiece.SentencePieceProcessor()
  try:
    model.LoadFromSerializedProto(data)
  except RuntimeError as error:
    raise ValueError(f"{path} is not a SentencePiece model") from error
  if not data or not model.piece_size():
    raise ValueError(f"{path} is not a SentencePiece model")
  found = {name: getattr(model, f"{name}_id")() for name in _SPECIAL}
  if found != _SPECIAL:
    raise ValueError(
      f"vocabulary {path} has the ids {found}, expected T5's {_SPECIAL}"
    )
  return model
