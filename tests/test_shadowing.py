"""No file that Python may find first hides a module of another package.

Python looks for imports where its program or its user stands: in the root, or
in one of these folders.
"""

import functools
import importlib.metadata
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("configs", "launch", "benchmarks", "examples", "studies")


@functools.cache
def required_modules() -> set[str]:
  """Returns the names that the required distributions are imported by."""
  lines = importlib.metadata.requires("imagen_jax")
  names = {re.match(r"[\w.-]+", line)[0] for line in lines}
  plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
  wanted = {plain(name) for name in names}
  return {
    module
    for module, owners in importlib.metadata.packages_distributions().items()
    if wanted & {plain(owner) for owner in owners}
  }


def shadowing(root: pathlib.Path, taken: set[str]) -> list[str]:
  """Returns the files and packages below root that hide a name of taken."""
  places = [*root.iterdir()]
  for folder in FOLDERS:
    places += (root / folder).rglob("*")
  return sorted(
    str(path.relative_to(root))
    for path in places
    if path.stem in taken
    and (path.suffix == ".py" or (path / "__init__.py").exists())
  )


def test_nothing_is_hidden():
  modules = required_modules()
  assert {"jax", "ml_collections", "PIL", "absl"} <= modules
  assert (ROOT / "configs" / "shapes.py").exists()
  assert shadowing(ROOT, modules | sys.stdlib_module_names) == []


@pytest.mark.parametrize(
  ("path", "found"),
  [
    ("configs/base64.py", True),
    ("configs/base_64.py", False),
    ("configs/paper/types.py", True),
    ("studies/guidance/jax/__init__.py", True),
    ("studies/guidance/plot.py", False),
    ("examples/json.md", False),
    ("queue.py", True),
    ("imagen_jax/types.py", False),
  ],
)
def test_planted_files_are_found(tmp_path, path, found):
  file = tmp_path / path
  file.parent.mkdir(parents=True, exist_ok=True)
  file.touch()
  named = path.removesuffix("/__init__.py")
  taken = required_modules() | sys.stdlib_module_names
  assert shadowing(tmp_path, taken) == [named] * found
