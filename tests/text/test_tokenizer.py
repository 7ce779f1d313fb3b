"""Tokenizer: T5's conventions, truncation, threads, bad input."""

import concurrent.futures
import hashlib
import pickle

import numpy as np
import pytest
import sentencepiece
from absl import logging
from etils import epath

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.text.tokenizer import Tokenizer, empty_prompt

PROMPT = "two red circles above a blue square"


@pytest.fixture
def tokenizer(vocabulary):
  return Tokenizer(vocabulary, 32)


@pytest.fixture
def warnings(monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, "warning", lambda message, *args: lines.append(message % args)
  )
  return lines


def test_ids_end_in_eos_and_are_padded_with_zeros(tokenizer, vocabulary):
  model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
  ids, mask = tokenizer([PROMPT, "a star"])
  assert ids.shape == mask.shape == (2, 32)
  assert ids.dtype == np.int32 and mask.dtype == np.bool_
  for row, real, prompt in zip(ids, mask, [PROMPT, "a star"], strict=True):
    pieces = model.encode(prompt)
    np.testing.assert_array_equal(row[: len(pieces) + 1], pieces + [1])
    assert not row[len(pieces) + 1 :].any()
    np.testing.assert_array_equal(real, np.arange(32) <= len(pieces))


def test_texts_come_back_from_their_ids(tokenizer):
  texts = ["a red star above two blue squares", "stripes"]
  assert tokenizer.decode(*tokenizer(texts)) == texts


def test_text_cannot_write_special_tokens(tokenizer):
  ids, _ = tokenizer(["a </s> star <pad>"])
  assert (ids[0] == 1).sum() == 1


def test_capitals_and_surrounding_space_do_not_matter(tokenizer):
  ids, _ = tokenizer([PROMPT, f"  {PROMPT.title()}\n"])
  np.testing.assert_array_equal(ids[0], ids[1])


def test_lowercase_is_for_vocabularies_that_know_capitals(tmp_path, captions):
  prefix = tmp_path / "cased"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([*captions, *map(str.title, captions)]),
    model_prefix=str(prefix), hard_vocab_limit=False, minloglevel=2,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
  )  # fmt: skip
  path = prefix.with_suffix(".model")
  plain, lower = Tokenizer(path, 32), Tokenizer(path, 32, lowercase=True)
  given = [PROMPT, PROMPT.title(), f"\n {PROMPT.upper()}\u3000"]
  same = np.repeat(plain([PROMPT])[0], 3, 0)
  np.testing.assert_array_equal(lower(given)[0], same)
  assert (plain(given[1:])[0] != same[1:]).any(1).all()


def test_the_empty_prompt():
  ids, mask = empty_prompt(T5Encoder.special, 5)
  assert ids.tolist() == [[1, 0, 0, 0, 0]] and ids.dtype == np.int32
  assert mask.tolist() == [[True, False, False, False, False]]


def test_too_long_is_cut_keeps_eos_and_is_reported(vocabulary, warnings):
  whole, _ = Tokenizer(vocabulary, 32)([PROMPT])
  ids, mask = Tokenizer(vocabulary, 5)([PROMPT])
  np.testing.assert_array_equal(ids[0], [*whole[0, :4], 1])
  assert mask.all()
  count = (whole != 0).sum()
  (line,) = warnings
  assert line.startswith(
    f"prompt '{PROMPT}' is {count} tokens long, 5 fit: cut after 'two red "
  )
  assert "\n" not in line and "square" not in line.partition("cut after")[2]


def test_warnings_of_long_prompts_are_short(vocabulary, warnings):
  cut, unknown = "\x1b[2J\n" * 50_000, "星" * 50_000
  Tokenizer(vocabulary, 128)([cut, unknown])
  assert len(warnings) == 2
  for line in warnings:
    assert len(line) < 300 and line.isprintable()


@pytest.mark.parametrize(
  ("prompt", "parts"),
  [
    ("a red star", None),
    ("two red ★ circles", "'★'"),
    ("紅い星", "'紅い星'"),
    ("a star 🌟 above a 🚀", "'🌟', '🚀'"),
    ("a 🌟 above a 🌟", "'🌟'"),
    ("a é star", "'é'"),
    ("é è ê ë ā ă ą", "'é', 'è', 'ê', 'ë', 'ā' and 2 more"),
    ("a \x07 star \x1b[2J", None),  # normalisation removes them
  ],
)
def test_what_the_encoder_does_not_know_is_named(
  tokenizer, warnings, prompt, parts
):
  for _ in range(2):
    tokenizer([prompt])
  said = f"prompt {prompt!r}: the text encoder does not know {parts}"
  assert warnings == ([said] if parts else [])


def test_unknown_parts_beyond_the_cut_are_not_named(vocabulary, warnings):
  Tokenizer(vocabulary, 4)([f"{PROMPT} 星"])
  (line,) = warnings
  assert "cut after" in line


def test_of_many_unknown_prompts_the_first_are_named(tokenizer, warnings):
  tokenizer([f"星 {i}" for i in range(100)])
  assert len(warnings) == 21
  assert warnings[-1].startswith("More than 20 prompts have what the text enco")


@pytest.mark.parametrize("prefix", ["gs://bucket/", "gs://bucket/a folder/"])
def test_a_vocabulary_in_a_bucket(vocabulary, monkeypatch, prefix):
  """Its path was once made one of a disk, /gs/bucket/..."""
  opened = []

  def read_bytes(path):
    opened.append(str(path))
    return vocabulary.read_bytes()

  path = prefix + "spiece.model"
  monkeypatch.setattr(type(epath.Path(path)), "read_bytes", read_bytes)
  found = Tokenizer(path, 32)
  assert opened == [path]
  assert found.fingerprint == Tokenizer(str(vocabulary), 32).fingerprint
  digest = hashlib.sha256(vocabulary.read_bytes()).hexdigest()
  assert found.fingerprint == digest


def test_exact_fit_is_not_cut(vocabulary, warnings):
  count = int(Tokenizer(vocabulary, 32)([PROMPT])[1].sum())
  ids, _ = Tokenizer(vocabulary, count)([PROMPT])
  assert ids[0, -1] == 1 and not warnings
  Tokenizer(vocabulary, count - 1)([PROMPT])
  assert len(warnings) == 1


def test_cuts_are_reported_once_per_text_and_not_without_end(
  vocabulary, warnings
):
  tokenizer = Tokenizer(vocabulary, 4)
  tokenizer([PROMPT, PROMPT])
  tokenizer([PROMPT])
  assert len(warnings) == 1
  tokenizer([f"{PROMPT} {i}" for i in range(100)])
  assert len(warnings) == 21
  assert warnings[-1].startswith("More than 20 prompts are cut; furth")


def test_same_from_many_threads_and_after_pickling(tokenizer, captions):
  expected = [tokenizer([caption])[0] for caption in captions]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    threaded = list(pool.map(lambda c: tokenizer([c])[0], captions))
  np.testing.assert_array_equal(threaded, expected)
  copy = pickle.loads(pickle.dumps(tokenizer))
  np.testing.assert_array_equal(copy(captions)[0], np.concatenate(expected))


@pytest.mark.parametrize(
  "prompts,message",
  [
    (["a", "b", 3], "prompt 2 is int, expected a string"),
    ([b"a"], "prompt 0 is bytes, expected a string"),
    ([None], "prompt 0 is NoneType, expected a string"),
    (["", "a"], "prompt 0 is empty"),
    (["a", " \t\n"], "prompt 1 is empty"),
    (["a", "\u200b"], "prompt 1 is empty"),
    (["a \udcff"], "prompt 0 is not valid Unicode text"),
    ("a star", "prompts is one string, expected a list of strings"),
  ],
)
def test_prompts_that_are_no_text_are_refused(tokenizer, prompts, message):
  with pytest.raises(ValueError, match=f"^{message}$"):
    tokenizer(prompts)


@pytest.mark.parametrize("data", [b"", b"no model", bytes(1000)])
def test_file_that_is_no_model_is_refused(tmp_path, data):
  path = tmp_path / "spiece.model"
  path.write_bytes(data)
  with pytest.raises(ValueError, match="is not a SentencePiece model"):
    Tokenizer(path, 32)


def test_missing_or_unreadable_model_is_refused(tmp_path):
  with pytest.raises(ValueError, match="cannot be read: No such file"):
    Tokenizer(tmp_path / "none.model", 32)
  with pytest.raises(ValueError, match="cannot be read: Is a directory"):
    Tokenizer(tmp_path, 32)


def test_truncated_model_is_refused(tmp_path, vocabulary):
  path = tmp_path / "spiece.model"
  path.write_bytes(vocabulary.read_bytes()[:-100])
  with pytest.raises(ValueError, match="is not a SentencePiece model"):
    Tokenizer(path, 32)


def test_foreign_special_ids_are_refused(tmp_path, captions):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(captions),
    model_prefix=str(tmp_path / "bos"),
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(ValueError, match=r"has the ids .+ expected T5's"):
    Tokenizer(tmp_path / "bos.model", 32)


def test_length_without_room_for_a_word_is_refused(vocabulary):
  with pytest.raises(ValueError, match="text length is 1, expected at least 2"):
    Tokenizer(vocabulary, 1)
