"""How long files and functions may be, without their docstrings.

Both are alarms: of a file without one subject, of a function without one task.
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("imagen_jax", "configs", "tests", "launch", "examples")
FILE_LINES = 340
FUNCTION_LINES = 60


def docstring_lines(tree: ast.AST) -> int:
  """The lines of all docstrings in a module, or of those in a function."""
  kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
  return sum(
    node.body[0].end_lineno - node.body[0].lineno + 1
    for node in ast.walk(tree)
    if isinstance(node, kinds) and ast.get_docstring(node) is not None
  )


def too_long(root: pathlib.Path) -> list[str]:
  """Files over 340 lines and functions over 60, except the verbs' main."""
  found = []
  paths = [path for folder in FOLDERS for path in (root / folder).rglob("*")]
  for path in sorted(path for path in paths if path.suffix in (".py", ".sh")):
    name, text = str(path.relative_to(root)), path.read_text("utf-8")
    lines = len(text.splitlines())
    if path.suffix == ".sh":
      found += [name] * (lines > FILE_LINES)
      continue
    tree = ast.parse(text)
    if lines - docstring_lines(tree) > FILE_LINES:
      found.append(name)
    verb = path.parent == root / "imagen_jax"
    found += [
      f"{name}: {node.name}"
      for node in ast.walk(tree)
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
      and node.end_lineno - node.lineno - docstring_lines(node)
      >= FUNCTION_LINES
      and not (verb and node.name == "main")
    ]
  return found


def test_files_and_functions_are_short():
  assert too_long(ROOT) == []


def test_planted_long_ones_are_found(tmp_path):
  nets = tmp_path / "imagen_jax" / "nets"
  nets.mkdir(parents=True)
  long = "():\n" + "  x = 1\n" * FUNCTION_LINES
  (tmp_path / "imagen_jax" / "train.py").write_text(
    f"def main{long}def f{long}"
  )
  (nets / "unet.py").write_text(f"class A:\n  pass\n\n\ndef main{long}")
  (nets / "short.py").write_text("x = 1\n" * FILE_LINES)
  (nets / "long.py").write_text("x = 1\n" * (FILE_LINES + 1))
  assert too_long(tmp_path) == [
    "imagen_jax/nets/long.py",
    "imagen_jax/nets/unet.py: main",
    "imagen_jax/train.py: f",
  ]
