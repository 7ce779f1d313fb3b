"""The words of docstrings, comments and pages: the glossary, and the spelling.

The glossary is the table in CONTRIBUTING.md.
"""

import ast
import contextlib
import io
import pathlib
import re
import tokenize
from collections.abc import Iterable

import codespell_lib

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = (
  "imagen_jax", "configs", "launch", "benchmarks", "docs", "examples",
)  # fmt: skip
# Parts of words and names of chunks that the code compares with.
SPELLED_RIGHT = "ttempt,allocat,alph"


def sources(*folders: str) -> dict[str, str]:
  """Returns {path: text} of the Python files below some folders."""
  paths = [path for name in folders for path in (ROOT / name).rglob("*.py")]
  named = {str(path.relative_to(ROOT)): path for path in sorted(paths)}
  return {
    name: path.read_text("utf-8")
    for name, path in named.items()
    if not name.startswith("imagen_jax/configs")  # a link to configs/
  }


def pages() -> dict[str, str]:
  """Returns {path: text} of the repository's pages, without generated ones."""
  paths = [
    path
    for name in ("", "docs", "launch", "studies")
    for path in (ROOT / name).glob("*.md")
  ]
  return {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in paths
    if path.name != "compiled.md"  # written by imagen_jax.compile
  }


def found_in(texts: dict[str, str], check) -> dict[str, list[str]]:
  """Returns {path: words} of the files in which a check finds any."""
  words = {path: check(text) for path, text in texts.items()}
  return {path: found for path, found in words.items() if found}


def prose(text: str) -> str:
  """Returns the docstrings and blocks of comments of a program."""
  kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
  nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, kinds)]
  blocks = [doc for node in nodes if (doc := ast.get_docstring(node))]
  last = -1
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      line, comment = token.start[0], token.string.lstrip("#! ")
      if line == last + 1:
        blocks[-1] += f"\n{comment}"
      else:
        blocks.append(comment)
      last = line
  return "\n\n".join(blocks)


def glossary(page: str) -> dict[str, str]:
  """Returns {word to avoid: word to write} from CONTRIBUTING's glossary."""
  rows = re.search(r"^## Glossary\n(.*?)(?=^## |\Z)", page, re.M | re.S)[1]
  cells = [
    [cell.strip() for cell in row.strip("|").split("|")]
    for row in rows.splitlines()
    if row.startswith("|")
  ]
  return {
    word: write for write, _, avoid in cells[2:] for word in avoid.split(", ")
  }


def pattern(words: Iterable[str]) -> str:
  """Returns the regular expression of whole words, also across lines."""
  either = "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in words)
  return rf"(?i)(?<![\w-])({either})(?![\w-])"


def words_to_avoid(text: str, words: Iterable[str]) -> list[str]:
  """Returns the words of a text that the glossary replaces.

  Names of the code are left out: blocks, `code`, --flags, links, tests, and the
  heads of entries in sections. So is the glossary.
  """
  for names in (
    r"(?ms)^```.*?^```|^## Glossary.*?(?=^## |\Z)",
    r"`(?:[^`\n]|\n(?!\n))*`|--\w\S*|\]\([^)]*\)|\S*::\S*|https?:\S*",
    r"(?m)^ +\*{0,2}\w[\w, *]*:",
  ):
    text = re.sub(names, "", text)
  return [" ".join(word.split()) for word in re.findall(pattern(words), text)]


def test_words_of_the_glossary_have_one_form():
  words = glossary(pages()["CONTRIBUTING.md"])
  check = lambda text: words_to_avoid(text, words)
  assert found_in(pages(), check) == {}
  # Finding comments takes long, and few files have one of the words anywhere.
  texts = {
    name: prose(text)
    for name, text in sources(*PROGRAMS, "tests").items()
    if re.search(pattern(words), text)
  }
  assert found_in(texts, check) == {}


def test_every_entry_of_the_glossary_is_found():
  words = glossary(pages()["CONTRIBUTING.md"])
  assert words["picture"] == "image"
  assert len(words) > 30
  for word in words:
    text = f"One {word.replace(' ', chr(10))}, and `{word}` or --{word}."
    assert words_to_avoid(text, words) == [word]
    assert words_to_avoid(f"An un-{word}, a_{word}.", words) == []


def test_prose_of_a_program():
  text = '''"""A docstring."""
x = "a string"  # A comment
# of two lines.
def f():
  """Returns x.

  Args:
    told: a name.
  """
'''
  assert sorted(prose(text).split("\n\n")) == [
    "A comment\nof two lines.",
    "A docstring.",
    "Args:\n  told: a name.",
    "Returns x.",
  ]
  words = {"told": "", "comment of": ""}
  assert words_to_avoid(prose(text), words) == ["comment of"]


def spelling(*paths: pathlib.Path) -> str:
  """Returns what codespell prints of some files and folders."""
  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    codespell_lib.main("-L", SPELLED_RIGHT, *map(str, paths))
  return output.getvalue()


def test_the_spelling():
  names = (*pages(), *sources(*PROGRAMS), "launch")  # with shell scripts
  assert spelling(*(ROOT / name for name in names)) == ""


def test_a_planted_mistake_of_spelling_is_found(tmp_path):
  (tmp_path / "a.md").write_text("It is sep" + "erate.")
  (tmp_path / "a.py").write_text("# It occ" + "ured.")
  assert spelling(tmp_path).count("==>") == 2
