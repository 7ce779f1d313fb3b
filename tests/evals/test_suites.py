"""Suites of prompts: files of several forms, and folders of their images."""

import json

import pytest
from etils import epath

from imagen_jax.evals import suites
from imagen_jax.evals.suites import Entry

TWO = [Entry("Colors", "a red car"), Entry("Text", 'a sign, "hello"')]


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("plain.tsv", 'Colors\ta red car\nText\ta sign, "hello"\n'),
    (
      "header.tsv",
      'category\tprompt\nColors\ta red car\n\nText\ta sign, "hello"',
    ),
    (
      "drawbench.csv",
      'Prompts,Category\na red car,Colors\n"a sign, ""hello""",Text\n',
    ),
    (
      "parti.tsv",
      "Prompt\tCategory\tChallenge\tNote\r\na red car\tColors\tx\t\r\n"
      'a sign, "hello"\tText\ty\tz\r\n',
    ),
  ],
)  # fmt: skip
def test_files_as_they_are_published(tmp_path, name, text):
  path = tmp_path / name
  path.write_text(text, newline="")
  assert suites.read(str(path)) == TWO


def test_the_shipped_suite_has_five_prompts_of_each_kind():
  found = suites.read("shapes")
  kinds = [entry.category for entry in found]
  assert len({entry.prompt for entry in found}) == len(found) == 45
  assert {kinds.count(kind) for kind in kinds} == {5}
  assert {"Colors", "Counting", "Conflicting", "Misspellings"} <= {*kinds}


@pytest.mark.parametrize(
  ("name", "text", "said"),
  [
    ("a.txt", "x", "--suite is '.*a.txt', expected shapes, or a .tsv or .csv"),
    (
      "a.tsv",
      "Colors\n",
      r"line 1 of suite .* is .*Colors.*, expected a categ",
    ),
    ("a.tsv", "category\tprompt\nA\tb\nC\t\n", "line 3 of suite"),
    ("a.tsv", "category\tprompt\n", "has no prompt, expected one per line"),
    ("a.csv", "", "has no prompt, expected one per line"),
    ("a.tsv", None, "suite .* cannot be read: No such file"),
  ],
)
def test_what_is_no_suite(tmp_path, name, text, said):
  path = tmp_path / name
  if text is not None:
    path.write_text(text)
  with pytest.raises(ValueError, match=said):
    suites.read(str(path))


def test_folders_for_other_scorers(tmp_path):
  folder = epath.Path(tmp_path)
  (folder / "images").mkdir()
  paths = [folder / "images" / f"{i}.png" for i in range(4)]
  for i, path in enumerate(paths):
    path.write_bytes(b"image %d" % i)
  suites.write_folders(folder, TWO, paths, {"seed": 3})
  assert (folder / "prompts.tsv").read_text().splitlines() == [
    "file\tcategory\tprompt",
    "images/0.png\tColors\ta red car",
    "images/1.png\tColors\ta red car",
    'images/2.png\tText\ta sign, "hello"',
    'images/3.png\tText\ta sign, "hello"',
  ]
  second = folder / "geneval" / "00001"
  metadata = json.loads((second / "metadata.jsonl").read_text())
  assert metadata == {"tag": "Text", "prompt": 'a sign, "hello"'}
  assert (second / "samples" / "0001.png").read_bytes() == b"image 3"
  for place in (folder, folder / "geneval"):
    found = suites.read_geneval(place)
    assert [entry for entry, _ in found] == TWO
    assert [[p.name for p in images] for _, images in found] == [
      ["0000.png", "0001.png"]
    ] * 2


@pytest.mark.parametrize(
  ("metadata", "said"),
  [
    (None, "has no folder 00000, expected GenEval's layout"),
    ("[]", "has no prompt, expected GenEval's metadata"),
    ("", "is not JSON"),
    ('{"prompt": "a"}', "samples has no image, expected 0000.png"),
  ],
)
def test_another_layout(tmp_path, metadata, said):
  if metadata is not None:
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "metadata.jsonl").write_text(metadata)
  with pytest.raises(ValueError, match=said):
    suites.read_geneval(epath.Path(tmp_path))
