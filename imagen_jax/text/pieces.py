"""Vocabularies: SentencePiece's for T5, and Hugging Face's for BERT and CLIP.

Each splits a text into the ids of its pieces, without the ids before and after
it. Many threads may use one at once, and it can be pickled.
"""

import hashlib
import json
import os
from collections.abc import Sequence

import sentencepiece

from imagen_jax import files
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.types import SpecialIds

_IN_BYTES = 2**26  # the largest tokenizer.json, five times that of XLM-R


class SentencePieces:
  """Splits texts by a SentencePiece model with T5's ids.

  Args:
    path: the model file, for messages.
    data: its bytes.

  Attributes:
    special: the ids that are no pieces.
    size: the number of pieces, with the special ones.
    sha256: None: the file's own checksum identifies it.

  Raises:
    ValueError: the data are no such model, or it has other special ids.
  """

  special: SpecialIds = T5Encoder.special
  sha256: None = None

  def __init__(self, path: str | os.PathLike, data: bytes):
    self._model = sentencepiece.SentencePieceProcessor()
    try:
      self._model.LoadFromSerializedProto(data)
    except RuntimeError as error:
      raise ValueError(f"{path} is not a SentencePiece model") from error
    self.size = self._model.piece_size() if data else 0
    if not self.size:
      raise ValueError(f"{path} is not a SentencePiece model")
    names = {"pad": "pad", "eos": "after", "unk": "unknown"}
    expected = {k: getattr(self.special, name) for k, name in names.items()}
    found = {k: getattr(self._model, f"{k}_id")() for k in names}
    if found != expected:
      raise ValueError(
        f"vocabulary {path} has the ids {found}, expected T5's {expected}"
      )

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text's pieces."""
    return self._model.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of some ids."""
    return self._model.decode([*ids])

  def unknown(self, text: str, count: int) -> list[str]:
    """Returns the parts of a text's first `count` pieces that have no id."""
    parts = zip(self._model.encode(text, out_type=str), self.encode(text))
    return [part for part, i in [*parts][:count] if i == self.special.unknown]


class WordPieces:
  """Splits texts by a tokenizer.json of Hugging Face's tokenizers library.

  Args:
    path: the file, for messages.
    data: its bytes.
    special: the ids that the encoder was trained with.

  Attributes:
    special: the same ids.
    size: the number of pieces, with the special ones.
    sha256: the SHA-256 of the pieces in the order of their ids. The file's own
      checksum changes with its layout.

  Raises:
    ValueError: the library is not installed, or the data are no such tokenizer
      or one with other special ids.
  """

  def __init__(self, path: str | os.PathLike, data: bytes, special: SpecialIds):
    try:
      # Imported here, because T5 does not need it.
      import tokenizers
    except ImportError as error:
      raise ValueError(
        f"vocabulary {path} needs the tokenizers library: pip install "
        "imagen_jax[encoders]"
      ) from error
    expected = f"{path} is not a tokenizer.json of Hugging Face"
    if len(data) > _IN_BYTES:
      raise ValueError(f"{expected}: it has over {_IN_BYTES >> 20} MiB")
    files.parse_json(data, f"vocabulary {path}")  # of bounded depth
    try:
      self._model = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises Exception itself
      said = " ".join(str(error).split())
      raise ValueError(f"{expected}: {files.quote(said, 200)}") from error
    self.special = special
    vocabulary = self._model.get_vocab()
    self.size = 1 + max(vocabulary.values(), default=-1)
    pieces = sorted((i, piece) for piece, i in vocabulary.items())
    self.sha256 = hashlib.sha256(json.dumps(pieces).encode()).hexdigest()
    # Lengths are this package's. A prompt that names "[SEP]" has no special id.
    self._model.no_truncation()
    self._model.no_padding()
    self._model.encode_special_tokens = True
    empty = self._model.encode("").ids
    if tuple(empty) != special.empty:
      raise ValueError(
        f"vocabulary {path} encodes the empty text as {empty[:8]}, expected "
        f"{[*special.empty]}, with which the text encoder was trained"
      )

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text's pieces."""
    return self._model.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of some ids."""
    return self._model.decode([*ids])

  def unknown(self, text: str, count: int) -> list[str]:
    """Returns the parts of a text's first `count` pieces that have no id."""
    found = self._model.encode(text, add_special_tokens=False)
    pairs = [*zip(found.ids, found.offsets)][:count]
    return [text[a:b] for i, (a, b) in pairs if i == self.special.unknown]
