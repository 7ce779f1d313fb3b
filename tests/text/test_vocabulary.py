"""train_vocabulary: T5's conventions, determinism, bad input."""

import string
import subprocess
import sys

import pytest
import sentencepiece

from imagen_jax.text.vocabulary import train_vocabulary


def test_has_t5_special_ids_and_no_bos(vocabulary):
  model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
  assert (model.pad_id(), model.eos_id(), model.unk_id()) == (0, 1, 2)
  assert model.bos_id() == -1
  assert [model.id_to_piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
  assert model.piece_size() == 160


def test_every_printable_ascii_character_is_known(vocabulary):
  model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
  for character in string.digits + string.ascii_letters + string.punctuation:
    pieces = model.encode(character)
    assert pieces and model.unk_id() not in pieces, character


def test_learns_the_captions_words_and_folds_case(vocabulary):
  model = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
  assert model.encode("Two RED Circles") == model.encode("two red circles")
  assert len(model.encode("two red circles above a blue square")) == 7


def test_few_captions_give_fewer_pieces(tmp_path):
  path = tmp_path / "v.model"
  count = train_vocabulary(["a red circle"] * 3, path, vocab_size=9000)
  model = sentencepiece.SentencePieceProcessor(model_file=str(path))
  assert count == model.piece_size() < 9000


def test_same_captions_give_the_same_file(vocabulary, captions, tmp_path):
  again = tmp_path / "again.model"
  train_vocabulary(iter(captions), again, vocab_size=160)
  assert again.read_bytes() == vocabulary.read_bytes()


@pytest.mark.parametrize(
  "lines,size,message",
  [
    ([], 160, "no captions"),
    (["", "  "], 160, "no captions"),
    (["a red circle"], 10, "vocab_size is 10, expected at least 72"),
    ([chr(0x4E00 + i) for i in range(99)], 100, "no vocabulary of 100 pieces"),
  ],
)
def test_unusable_input_is_one_sentence(tmp_path, lines, size, message):
  with pytest.raises(ValueError, match=message) as error:
    train_vocabulary(lines, tmp_path / "v.model", vocab_size=size)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())


def run_program(*flags):
  command = [sys.executable, "-m", "imagen_jax.text.train_vocabulary", *flags]
  return subprocess.run(command, capture_output=True, text=True)


def test_program_writes_the_model(vocabulary, captions, tmp_path):
  lines = tmp_path / "captions.txt"
  lines.write_text("\n".join(captions) + "\n")
  output = tmp_path / "spiece.model"
  done = run_program(
    f"--captions={lines}", f"--output={output}", "--vocab_size=160"
  )
  assert done.returncode == 0, done.stderr
  assert output.read_bytes() == vocabulary.read_bytes()


def test_program_without_captions_fails_in_one_line(tmp_path):
  missing, output = tmp_path / "no.txt", tmp_path / "spiece.model"
  done = run_program(
    f"--captions={missing}", f"--output={output}", "--vocab_size=160"
  )
  assert done.returncode != 0
  assert str(missing) in done.stderr and "Traceback" not in done.stderr
  assert not output.exists()
