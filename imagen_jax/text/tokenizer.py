"""SentencePiece with T5's conventions: no BOS, </s> = 1, pad = 0, unk = 2."""

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import sentencepiece
from absl import logging
from etils import epath

from imagen_jax import files

_SPECIAL = {"pad": 0, "eos": 1, "unk": 2}
# So many texts are named in warnings of one kind, each once. A data set of
# captions is not the place to read about every one of them.
_NAMED = 20
_CUT, _UNKNOWN = "are cut", "have what the text encoder does not know"
_PARTS = 5  # parts of a prompt that one warning names


def check_prompts(prompts: Sequence[str]) -> None:
  """Raises ValueError, naming the offender, unless all are texts with words."""
  if isinstance(prompts, (str, bytes)):
    raise ValueError("prompts is one text, expected a list of texts")
  for i, prompt in enumerate(prompts):
    if not isinstance(prompt, str):
      kind = type(prompt).__name__
      raise ValueError(f"prompt {i} is {kind}, expected text")
    if not prompt.strip():
      raise ValueError(f"prompt {i} is empty")
    try:
      prompt.encode("utf-8")
    except UnicodeEncodeError:
      raise ValueError(f"prompt {i} is not valid Unicode text") from None


def empty_prompt(length: int) -> tuple[np.ndarray, np.ndarray]:
  """(ids, mask), both [1, length], of no words: </s> and padding."""
  ids = np.full((1, length), _SPECIAL["pad"], np.int32)
  ids[:, 0] = _SPECIAL["eos"]
  return ids, ids == _SPECIAL["eos"]


class Tokenizer:
  """prompts -> (ids [n, length] int32, mask [n, length] bool, True = real).

  With lowercase, prompts lose capitals and the space around them first, which
  most vocabularies' own normalisation leaves as they are.
  May be called from many threads at once and sent to other processes.
  ValueError for a model file that cannot be used, and for prompts that
  check_prompts refuses. Text over length loses its end, </s> stays, and a
  warning says where it is cut. Another names the parts of a prompt that have no
  piece: to the encoder they are all the same.

  Attributes:
    fingerprint: the SHA-256 of the model file, in hexadecimal.
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
    return self._model.piece_size()

  def __call__(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
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
    """The texts of ids and mask, as they are after normalising and cutting."""
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
    """Warns of the parts of a prompt, as far as it is used, without a piece."""
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
    """Returns whether to warn: once per text, and of the first texts only."""
    # Two threads may come here with one text: it is then named twice, no worse.
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
  """Returns the bytes of a file, which may be on gs://."""
  try:
    return epath.Path(files.expand(path)).read_bytes()
  except Exception as error:  # object stores raise many kinds
    raise ValueError(
      f"vocabulary {path} cannot be read: {files.reason(error)}"
    ) from error


def _parse(
  path: str | os.PathLike, data: bytes
) -> sentencepiece.SentencePieceProcessor:
  """Returns the model of a file's bytes; ValueError if it has not T5's ids."""
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
