"""SentencePiece with T5's conventions: no BOS, </s> = 1, pad = 0, unk = 2."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import sentencepiece
from absl import logging

_SPECIAL = {"pad": 0, "eos": 1, "unk": 2}
# Of the texts that are cut, so many are named in full, each once. A data set
# of captions is not the place to read about every one of them.
_NAMED_CUTS = 20


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
  warning says what is left of it.
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
    self._model = _load(pathlib.Path(path))
    self._cut: set[str] = set()

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
    """Warns once per text, and for the first texts only."""
    # Two threads may come here with one text: it is then named twice, no worse.
    if prompt in self._cut or len(self._cut) > _NAMED_CUTS:
      return
    self._cut.add(prompt)
    if len(self._cut) > _NAMED_CUTS:
      logging.warning(
        "More than %d prompts are over %d tokens long; further cuts are not "
        "reported.",
        _NAMED_CUTS,
        self.length,
      )
      return
    logging.warning(
      'prompt "%s" is %d tokens long, %d fit: cut to "%s"',
      prompt,
      len(pieces) + 1,
      self.length,
      self._model.decode(pieces[: self.length - 1]),
    )


def _load(path: pathlib.Path) -> sentencepiece.SentencePieceProcessor:
  """The model in the file, with T5's ids; ValueError otherwise."""
  try:
    data = path.read_bytes()
  except OSError as error:
    raise ValueError(
      f"vocabulary {path} cannot be read: {error.strerror}"
    ) from error
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
