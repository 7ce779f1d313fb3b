"""All sentences of errors and logs, in one table, and the rules they follow.

tests/messages.txt has them, so that they can be read together. After a change:

  python tests/test_messages.py
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TABLE = pathlib.Path(__file__).with_name("messages.txt")
LOGS = {"log", "_log", "print_line", "fail"}  # functions that print a sentence
# Not the words of these sentences: those of another glossary, and a second way
# to write "X is Y, expected Z".
OLD = re.compile(
  r"\b(pictures?|enlarge\w*|told|tells?|goes on|go on|sound|must|got)\b"
)


def words(node: ast.expr) -> str | None:
  """A string of the code, with {} for what it formats; None for others."""
  if isinstance(node, ast.Constant):
    return node.value if isinstance(node.value, str) else None
  if isinstance(node, ast.JoinedStr):
    parts = [
      part.value if isinstance(part, ast.Constant) else f"{{{show(part)}}}"
      for part in node.values
    ]
    return "".join(parts)
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    sides = words(node.left), words(node.right)
    if sides == (None, None):
      return None
    return "".join("{}" if side is None else side for side in sides)
  return None


def show(part: ast.FormattedValue) -> str:
  """What stands for a formatted value: its name if it has one."""
  value = part.value
  if isinstance(value, ast.Name):
    return value.id
  return value.attr if isinstance(value, ast.Attribute) else ""


def sentences(text: str) -> list[tuple[str, str]]:
  """(kind, sentence) of a module's errors and logs, in their order."""
  found = []
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
      kind, call = "error", node.exc
    elif isinstance(node, ast.Call):
      name = getattr(node.func, "attr", getattr(node.func, "id", ""))
      if name not in LOGS:
        continue
      kind, call = "log", node
    else:
      continue
    said = words(call.args[0]) if call.args else None
    if said and " " in said.strip():
      found.append((call.lineno, kind, " ".join(said.split())))
  return [(kind, said) for _, kind, said in sorted(found)]


def table() -> str:
  """The table of all modules."""
  lines = []
  for path in sorted((ROOT / "imagen_jax").rglob("*.py")):
    if path.is_relative_to(ROOT / "imagen_jax" / "configs"):
      continue
    rows = sentences(path.read_text("utf-8"))
    if rows:
      lines += ["", str(path.relative_to(ROOT))]
      lines += [f"  {kind:5}  {said}" for kind, said in rows]
  return "\n".join(lines).lstrip() + "\n"


def mistakes(kind: str, said: str) -> list[str]:
  """The rules that a sentence breaks."""
  found = [f"has the old word {word[0]!r}" for word in OLD.finditer(said)]
  if said.endswith(".") and not said.endswith("..."):
    found.append("ends with a full stop")
  first = said.split()[0]
  if kind == "error" and re.fullmatch("[A-Z][a-z]+", first):
    found.append("begins with a capital letter")
  return found


def test_the_table_is_that_of_the_code():
  assert TABLE.read_text("utf-8") == table(), f"python {__file__} writes it"


def test_all_sentences_follow_the_rules():
  rows = [
    line.split(None, 1) for line in table().splitlines() if line[:1] == " "
  ]
  assert len(rows) > 300
  assert {
    said: bad for kind, said in rows if (bad := mistakes(kind, said))
  } == {}


@pytest.mark.parametrize(
  "said",
  [
    "the size must be 3", "{x} expected 3, got {y}", "Size is 3", "it goes on",
    "size is {size}, expected 3.", "a picture is {x}",
  ],
)  # fmt: skip
def test_planted_mistakes_are_found(said):
  code = f"def f():\n  raise ValueError(f'{said}')\n"
  assert [bool(mistakes(*row)) for row in sentences(code)] == [True]


if __name__ == "__main__":
  TABLE.write_text(table(), "utf-8")
