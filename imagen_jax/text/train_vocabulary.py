"""Trains a tokenizer's vocabulary on a file of captions, one per line.

  python -m imagen_jax.text.train_vocabulary --captions=captions.txt \\
    --output=spiece.model --vocab_size=1000
"""

import pathlib
import sys

from absl import app, flags, logging

from imagen_jax.text import vocabulary

_CAPTIONS = flags.DEFINE_string(
  "captions", None, "A UTF-8 text file with one caption per line."
)
_OUTPUT = flags.DEFINE_string("output", None, "The model file to write.")
_VOCAB_SIZE = flags.DEFINE_integer(
  "vocab_size", None, "Number of pieces at most, the special ones included."
)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"{argv[1]!r} is not a flag")
  try:
    text = pathlib.Path(_CAPTIONS.value).read_text(encoding="utf-8")
    pieces = vocabulary.train_vocabulary(
      text.split("\n"), _OUTPUT.value, vocab_size=_VOCAB_SIZE.value
    )
  except OSError as error:
    sys.exit(f"train_vocabulary: {error.filename}: {error.strerror}")
  except ValueError as error:
    sys.exit(f"train_vocabulary: {error}")
  logging.info("wrote %s: %d pieces", _OUTPUT.value, pieces)


if __name__ == "__main__":
  flags.mark_flags_as_required(["captions", "output", "vocab_size"])
  app.run(main)
