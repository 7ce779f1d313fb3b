r"""Trains a tokenizer's vocabulary on a file of captions, one per line.

  python -m imagen_jax.text.train_vocabulary --captions=captions.txt \
    --output=spiece.model --vocab_size=1000

The output is a SentencePiece model, as T5's vocabulary is.
"""

import sys

from absl import app, flags, logging

from imagen_jax import files
from imagen_jax.text import vocabulary


def define_flags(values: flags.FlagValues) -> None:
  """Defines the program's flags, all required."""
  on = dict(flag_values=values, required=True)
  flags.DEFINE_string(
    "captions", None, "A UTF-8 text file with one caption per line.", **on
  )
  flags.DEFINE_string("output", None, "The model file to write.", **on)
  flags.DEFINE_integer(
    "vocab_size", None,
    "Number of pieces at most, the special ones included.", **on
  )  # fmt: skip


def main(argv: list[str]) -> None:
  """Trains the vocabulary and writes it to --output.

  Args:
    argv: the program's name, and arguments that are no flags.
  """
  args = flags.FLAGS
  if len(argv) > 1:
    raise app.UsageError(f"{argv[1]!r} is not a flag")
  try:
    captions = files.read_lines(files.expand(args.captions), "captions")
    pieces = vocabulary.train_vocabulary(
      captions, args.output, vocab_size=args.vocab_size
    )
  except OSError as error:
    sys.exit(f"train_vocabulary: {error.filename}: {error.strerror}")
  except ValueError as error:
    sys.exit(f"train_vocabulary: {error}")
  logging.info("wrote %s: %d pieces", args.output, pieces)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
