"""Tokenizers of BERT and CLIP: tokenizer.json, its ids and bad files."""

import builtins
import functools
import json
import pickle

import numpy as np
import pytest
from absl import logging

from imagen_jax.nets.bert import BertEncoder
from imagen_jax.nets.clip_text import ClipTextEncoder
from imagen_jax.text.pieces import WordPieces
from imagen_jax.text.tokenizer import Tokenizer, empty_prompt

WORDS = ["a", "red", "star", "##s", "[", "]", "sep"]
LETTERS = ["a", "r", "e", "d", "<", ">"]
SPECIAL = {"bert": BertEncoder.special, "clip": ClipTextEncoder.special}


def bert_json():
  """A tokenizer.json of BERT's layout, cut and padded as sentence models."""
  names = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]"}
  vocabulary = {name: i for i, name in names.items()}
  vocabulary |= {f"[unused{i}]": i for i in range(1, 100)}
  vocabulary |= {word: 103 + i for i, word in enumerate(WORDS)}
  ends = [{"SpecialToken": {"id": name, "type_id": 0}} for name in
          ("[CLS]", "[SEP]")]  # fmt: skip
  single = [ends[0], {"Sequence": {"id": "A", "type_id": 0}}, ends[1]]
  return {
    "version": "1.0",
    "truncation": {"max_length": 4, "stride": 0, "strategy": "LongestFirst",
                   "direction": "Right"},
    "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0,
                "pad_type_id": 0, "pad_token": "[PAD]",
                "pad_to_multiple_of": None},
    "added_tokens": [
      dict(id=i, content=name, special=True, single_word=False, lstrip=False,
           rstrip=False, normalized=False) for i, name in names.items()
    ],
    "normalizer": {"type": "BertNormalizer", "clean_text": True,
                   "handle_chinese_chars": True, "strip_accents": None,
                   "lowercase": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
      "type": "TemplateProcessing", "single": single, "pair": single,
      "special_tokens": {
        name: {"id": name, "ids": [i], "tokens": [name]}
        for i, name in names.items() if i > 100
      },
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocabulary,
              "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100},
  }  # fmt: skip


def clip_json():
  """A tokenizer.json of CLIP's layout, with few merges."""
  names = {49406: "<|startoftext|>", 49407: "<|endoftext|>"}
  letters = [
    *LETTERS,
    *(f"{letter}</w>" for letter in LETTERS),
    "re",
    "red</w>",
  ]
  vocabulary = {letter: i for i, letter in enumerate(letters)}
  return bert_json() | {
    "truncation": None,
    "padding": None,
    "added_tokens": [
      dict(id=i, content=name, special=True, single_word=False, lstrip=False,
           rstrip=False, normalized=False) for i, name in names.items()
    ],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": r"\p{L}+|[^\s\p{L}]"},
       "behavior": "Removed", "invert": True},
      {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
       "use_regex": True},
    ]},
    "post_processor": {
      "type": "RobertaProcessing", "trim_offsets": False,
      "add_prefix_space": False, "sep": [names[49407], 49407],
      "cls": [names[49406], 49406],
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": True,
                "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "unk_token": names[49407], "dropout": None,
              "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
              "fuse_unk": False, "byte_fallback": False,
              "vocab": vocabulary | {n: i for i, n in names.items()},
              "merges": [["r", "e"], ["re", "d</w>"]]},
  }  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path):
  """tokenizer(kind, length): of the file that the kind's function describes."""

  def make(kind, length, change=None):
    value = {"bert": bert_json, "clip": clip_json}[kind]()
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(value | (change or {})))
    parse = functools.partial(WordPieces, special=SPECIAL[kind])
    return Tokenizer(path, length, parse=parse)

  return make


@pytest.fixture
def warnings(monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, "warning", lambda message, *args: lines.append(message % args)
  )
  return lines


def test_bert_ids(tokenizer):
  """The file's own lengths do not matter, nor what a prompt spells."""
  bert = tokenizer("bert", 9)
  assert bert.vocab_size == 110
  ids, mask = bert(["A red star", "stars [SEP]"])
  assert ids.tolist() == [
    [101, 103, 104, 105, 102, 0, 0, 0, 0],
    [101, 105, 106, 107, 109, 108, 102, 0, 0],
  ]
  np.testing.assert_array_equal(mask, ids != 0)
  assert bert.decode(ids, mask) == ["a red star", "stars [ sep ]"]
  again = pickle.loads(pickle.dumps(bert))
  np.testing.assert_array_equal(again(["A red star"])[0], ids[:1])


def test_clip_ids_end_with_the_id_that_also_pads(tokenizer):
  clip = tokenizer("clip", 6)
  assert clip.vocab_size == 49408
  ids, mask = clip(["red a"])
  assert ids.tolist() == [[49406, 13, 6, 49407, 49407, 49407]]
  assert mask.tolist() == [[True] * 4 + [False] * 2]


def test_a_long_text_keeps_both_ends(tokenizer, warnings):
  ids, mask = tokenizer("bert", 5)(["a red red star star"])
  assert ids.tolist() == [[101, 103, 104, 104, 102]] and mask.all()
  (line,) = warnings
  assert "is 7 tokens long, 5 fit: cut after 'a red red'" in line


def test_unknown_words_are_named(tokenizer, warnings):
  tokenizer("bert", 9)(["a blue star ☃", "a red star"])
  (line,) = warnings
  assert line.endswith("the text encoder does not know 'blue', '☃'")


@pytest.mark.parametrize("kind", SPECIAL)
def test_the_empty_prompt_is_what_the_tokenizer_makes(tokenizer, kind):
  special = SPECIAL[kind]
  ids, mask = empty_prompt(special, 4)
  assert ids.tolist() == [[*special.empty, special.pad, special.pad]]
  assert mask.tolist() == [[True, True, False, False]]
  with pytest.raises(ValueError, match="length is 2, expected at least 3"):
    tokenizer(kind, 2)


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (b"", "is not JSON"),
    (b"\xff", "is not JSON"),
    (b"[1]", "is not a tokenizer.json of Hugging Face: '"),
    (b"[" * 10**5, "is nested too deeply"),
    (b"{}" + b" " * 2**26, "it has over 64 MiB"),
    (json.dumps(bert_json() | {"post_processor": None}).encode(),
     r"encodes the empty text as \[\], expected \[101, 102\]"),
    (json.dumps(clip_json()).encode(),
     r"encodes the empty text as \[49406, 49407\], expected \[101, 102\]"),
  ],
  ids=["empty", "bytes", "list", "deep", "large", "no ends", "CLIP's"],
)  # fmt: skip
def test_bad_files_are_refused_in_one_sentence(tmp_path, data, said):
  path = tmp_path / "tokenizer.json"
  path.write_bytes(data)
  parse = functools.partial(WordPieces, special=SPECIAL["bert"])
  with pytest.raises(ValueError, match=said) as caught:
    Tokenizer(path, 9, parse=parse)
  assert "tokenizer.json" in str(caught.value) and len(str(caught.value)) < 600


def test_without_the_library(tmp_path, monkeypatch):
  real = builtins.__import__

  def absent(name, *args):
    if name == "tokenizers":
      raise ImportError(name)
    return real(name, *args)

  monkeypatch.setattr(builtins, "__import__", absent)
  with pytest.raises(ValueError, match=r"pip install imagen_jax\[encoders\]"):
    WordPieces("a.json", b"{}", SPECIAL["bert"])
