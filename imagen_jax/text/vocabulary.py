"""Training of a vocabulary with T5's special ids on given captions."""

import io
import os
import string
from collections.abc import Iterable

import sentencepiece

from imagen_jax import files

# Captions are case-folded before the pieces are learnt, and so is every prompt.
# So upper-case letters need no pieces of their own.
_REQUIRED = "".join(
  sorted(set(string.digits + string.ascii_lowercase + string.punctuation))
)
_SMALLEST = len(_REQUIRED) + 4  # pad, </s>, unk and the space


def train_vocabulary(
  captions: Iterable[str], path: str | os.PathLike, *, vocab_size: int
) -> int:
  """Writes a SentencePiece model: pad 0, </s> 1, unk 2, no BOS, case-folded.

  The same captions in the same order give the same file. Every printable ASCII
  character, case-folded, has a piece, whether or not the captions use it.

  Args:
    captions: the texts to learn from; blank ones are skipped.
    path: the file to write.
    vocab_size: the most pieces, with the special ones.

  Returns:
    The number of pieces. It is less than vocab_size if the captions need fewer.

  Raises:
    ValueError: there are no captions, vocab_size has no room for the ASCII
      characters, or the file cannot be written.
  """
  captions = [caption for caption in captions if caption.strip()]
  if not captions:
    raise ValueError("there are no captions to train a vocabulary on")
  if vocab_size < _SMALLEST:
    raise ValueError(
      f"vocab_size is {vocab_size}, expected at least {_SMALLEST}"
    )
  try:
    model = _train(captions, vocab_size)
  except RuntimeError as error:
    reason = str(error).rpartition("] ")[2].partition(". ")[0]
    raise ValueError(
      f"no vocabulary of {vocab_size} pieces can be learnt from these "
      f"{len(captions)} captions: {reason}"
    ) from error
  files.write(path, model)
  return sentencepiece.SentencePieceProcessor(model_proto=model).piece_size()


def _train(captions: list[str], vocab_size: int) -> bytes:
  """Trains a model and returns it serialised."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(captions),
    model_writer=model,
    # T5's own model is a unigram model. The unigram trainer takes its candidate
    # pieces from substrings that different words share, so it would spell out
    # the few words of captioned_shapes. BPE learns a piece per word. A
    # tokenizer reads models of either type.
    model_type="bpe",
    vocab_size=vocab_size,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    normalization_rule_name="nmt_nfkc_cf",
    required_chars=_REQUIRED,
    num_threads=1,
    shuffle_input_sentence=False,
    minloglevel=2,
  )
  return model.getvalue()
