"""Every test that FAULTS.md names is one."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "FAULTS.md").read_text("utf-8")


def named_in_rows(page: str) -> list[list[str]]:
  """What stands in the last column of a table's rows, below its head."""
  rows = [line for line in page.splitlines() if line.startswith("|")]
  cells = [row.replace("\\|", "").split("|") for row in rows[2:]]
  return [row[3].strip().split(", ") for row in cells]


def is_test(name: str) -> bool:
  """Whether data/test_x.py::test_y is a function of that file."""
  file, _, function = name.partition("::")
  path = ROOT / "tests" / file
  if not path.is_file():
    return False
  return function in {
    node.name
    for node in ast.parse(path.read_text("utf-8")).body
    if isinstance(node, ast.FunctionDef)
  }


def test_every_row_names_tests_that_exist():
  rows = named_in_rows(PAGE)
  assert len(rows) > 20
  for names in rows:
    assert [name for name in names if not is_test(name)] == []


def test_every_test_of_faults_is_named():
  for path in (ROOT / "tests" / "verbs" / "faults").glob("test_*.py"):
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M):
      assert f"verbs/faults/{path.name}::{name} " in f"{PAGE} ".replace(
        ",", " "
      )


@pytest.mark.parametrize(
  "name", ["", "test_faults_page.py", "no.py::test_x", "test_faults_page.py::x"]
)
def test_what_is_no_test_is_found(name):
  assert not is_test(name)
