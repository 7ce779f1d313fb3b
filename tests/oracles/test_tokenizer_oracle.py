"""Our tokenizer against transformers', of one SentencePiece model.

Unigram, as T5's own is: transformers reads no other for T5. In one thing they
differ on purpose: here "</s>" in a prompt is text, not the end.
"""

import pathlib

import numpy as np
import pytest
import sentencepiece

from imagen_jax.text.tokenizer import Tokenizer

LENGTH = 77  # DeepFloyd IF's
PROMPTS = [
  "a photo of a corgi",
  "A Photo Of A CORGI",
  "  two  spaces,\ta tab\nand a line  ",
  "naïve café, Ångström, ﬁnance, ½ ①",
  "full width Ｃａｔ and a\u00a0hard\u200bspace",
  "ein grüner Kreis, 赤い星, красная звезда",
  "a 🐶 with 🎩 and 👩‍🚀",
  'don\'t; e.g. "this" (or that) - 3.14%',
  "x",
  "<s> <extra_id_0> [MASK] ▁ _",
  "x " * 75,
  "x " * 76,
  "x " * 77,
  "a very long prompt about nothing in particular, " * 12,
]


@pytest.fixture
def path(tmp_path):
  """T5's settings, and its normalisation, on the words of our own files."""
  root = pathlib.Path(__file__).parents[2]
  files = [root / "README.md", *sorted(root.glob("imagen_jax/**/*.py"))]
  lines = [line for file in files for line in file.read_text().splitlines()]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_prefix=str(tmp_path / "spiece"),
    model_type="unigram",
    vocab_size=2000,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  return tmp_path / "spiece.model"


@pytest.mark.oracles
@pytest.mark.parametrize("lowercase", [False, True])
def test_ids_are_those_of_transformers(path, lowercase):
  import transformers

  theirs = transformers.T5Tokenizer.from_pretrained(path.parent, extra_ids=0)
  prompts = [p.lower().strip() if lowercase else p for p in PROMPTS]
  expected = theirs(
    prompts, padding="max_length", truncation=True, max_length=LENGTH
  )
  ids, mask = Tokenizer(path, LENGTH, lowercase=lowercase)(PROMPTS)
  for row, prompt in enumerate(prompts):
    np.testing.assert_array_equal(
      ids[row], expected["input_ids"][row], err_msg=prompt
    )
    np.testing.assert_array_equal(mask[row], expected["attention_mask"][row])
  counts = mask.sum(1)
  assert {2, LENGTH - 1, LENGTH} <= {*counts.tolist()}
