"""Who may import whom: every file imports from lower rows of RANKS only.

What is built on the package uses its public names only.
"""

import ast
import json
import pathlib
import subprocess
import sys

import pytest

import imagen_jax

PACKAGE = pathlib.Path(__file__).parents[1] / "imagen_jax"
ROWS = (
  ("__init__",),  # of the package itself: imports nothing of it
  ("types", "files", "progress", "configs"),
  ("diffusion", "nets", "shapes", "parallel"),  # never import each other
  ("data", "stage", "text", "checkpoints"),
  ("cascade", "interop", "evals", "samples", "parts"),
  ("training", "request"),
  ("build", "image_ids"),
  ("batches",),
  ("imagen", "aot", "cli"),
  ("jobs",),
  ("scoring", "metrics"),
  ("suite", "sweep"),
)
RANKS = {name: rank for rank, names in enumerate(ROWS) for name in names}
VERB = len(ROWS)  # every other name at the top: train, sample, ...
PUBLIC = {*imagen_jax.__all__, "__version__", "types"}
USERS = ("examples", "studies", "web")  # these folders, and every notebook


def imported_names(path: pathlib.Path, package: pathlib.Path) -> set[str]:
  """Dotted names that a file imports anywhere in it, relative ones resolved."""
  home = path.relative_to(package.parent).parent.parts
  names = set()
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = home[: len(home) - node.level + 1] if node.level else ()
      base = [*base, node.module] if node.module else base
      names |= {".".join([*base, alias.name]) for alias in node.names}
  return names


def parse(path: pathlib.Path) -> ast.Module:
  """Parses a file of Python, or the code cells of a notebook."""
  text = path.read_text("utf-8")
  if path.suffix == ".ipynb":
    text = "\n".join(
      "".join(cell["source"])
      for cell in json.loads(text)["cells"]
      if cell["cell_type"] == "code"
    )
  return ast.parse(text, path.name)


def users(root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files that are to use the public interface only."""
  paths = [*root.glob("*.ipynb"), *root.glob("[!.]*/**/*.ipynb")]
  paths += [path for name in USERS for path in (root / name).rglob("*.py")]
  checkpoints = lambda path: ".ipynb_checkpoints" in path.parts  # Jupyter's
  return sorted(path for path in paths if not checkpoints(path))


def private_uses(root: pathlib.Path) -> list[str]:
  """One line for every name of the package that is used and not public."""
  found = []
  for path in users(root):
    names = imported_names(path, root / PACKAGE.name)
    names |= {
      ast.unparse(node)
      for node in ast.walk(parse(path))
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    for name in sorted(names):
      top, _, rest = name.partition(".")
      if top == PACKAGE.name and rest.split(".")[0] not in {"", *PUBLIC}:
        found.append(f"{path.relative_to(root)} uses {name}")
  return found


def layer_violations(package: pathlib.Path) -> list[str]:
  """One line for every import that does not point to a lower row."""
  found = []
  links = [path for path in package.iterdir() if path.is_symlink()]
  paths = [path for place in (package, *links) for path in place.rglob("*.py")]
  for path in sorted(paths):
    here = path.relative_to(package).with_suffix("").parts[0]
    for name in sorted(imported_names(path, package)):
      top, _, rest = name.partition(".")
      there = rest.split(".")[0]
      ours = top == package.name and there not in ("", here, "__version__")
      if ours and RANKS.get(there, VERB) >= RANKS.get(here, VERB):
        found.append(f"{path.relative_to(package)} imports {name}")
  return found


def outside_imports(folder: pathlib.Path, package: pathlib.Path) -> set[str]:
  """Top-level names that a folder imports, without the package and Python's."""
  names = set().union(
    *(imported_names(path, package) for path in folder.rglob("*.py"))
  )
  tops = {name.split(".")[0] for name in names}
  return tops - sys.stdlib_module_names - {package.name}


def test_every_import_points_down():
  assert (PACKAGE / "types.py").exists()
  assert layer_violations(PACKAGE) == []


def test_diffusion_imports_jax_only():
  assert outside_imports(PACKAGE / "diffusion", PACKAGE) == {"jax"}


@pytest.mark.parametrize(
  ("path", "line", "allowed"),
  [
    ("diffusion/a.py", "from imagen_jax.types import Conditioning", True),
    ("diffusion/a.py", "from imagen_jax import diffusion", True),
    ("diffusion/a.py", "from . import schedules", True),
    ("stage.py", "from imagen_jax import diffusion, nets, types", True),
    ("train.py", "import imagen_jax.build", True),
    ("train.py", "import imagen_jaxlike.sample", True),
    ("aot/programs.py", "from imagen_jax import build", True),
    ("compile.py", "from imagen_jax import aot, build", True),
    ("configs/a.py", "from imagen_jax.configs import shapes16", True),
    ("build/configs.py", "from imagen_jax.configs import shapes", True),
    ("configs/a.py", "from imagen_jax import build", False),
    ("imagen.py", "from imagen_jax.training import loop", True),
    ("imagen.py", "from imagen_jax.cli import program", False),
    ("training/loop.py", "from imagen_jax import build", False),
    ("types.py", "from imagen_jax import nets", False),
    ("__init__.py", "from imagen_jax import types", False),
    ("diffusion/a.py", "from imagen_jax.nets import unet", False),
    ("shapes/x/a.py", "from imagen_jax import parallel", False),
    ("shapes/x/a.py", "from ...text import tokenizer", False),
    ("nets/a.py", "def f():\n  import imagen_jax.build as b", False),
    ("nets/__init__.py", "from ..stage import Stage", False),
    ("text/a.py", "import jax, imagen_jax.stage", False),
    ("interop/a.py", "from imagen_jax.checkpoints import manager", True),
    ("interop/a.py", "from imagen_jax.training import step", False),
    ("evals/a.py", "from .. import sample", False),
    ("build.py", "from imagen_jax import train", False),
    ("build.py", "from imagen_jax import aot", False),
    ("aot/programs.py", "from imagen_jax.sample import main", False),
    ("train.py", "from imagen_jax import sample", False),
  ],
)
def test_planted_imports_are_judged_rightly(tmp_path, path, line, allowed):
  bad = tmp_path / "imagen_jax" / path
  bad.parent.mkdir(parents=True)
  bad.write_text(line + "\n")
  assert (layer_violations(tmp_path / "imagen_jax") == []) == allowed


def test_planted_outside_import_is_found(tmp_path):
  (tmp_path / "a.py").write_text("import math\nfrom numpy.random import rand\n")
  assert outside_imports(tmp_path, tmp_path) == {"numpy"}


def test_notebooks_and_examples_use_public_names_only():
  root = PACKAGE.parent
  assert root / "launch" / "colab_sampling.ipynb" in users(root)
  assert private_uses(root) == []


@pytest.mark.parametrize(
  ("line", "allowed"),
  [
    ("import imagen_jax\nimagen_jax.load('shapes').sample('a')", True),
    ("from imagen_jax import Imagen, types", True),
    ("from imagen_jax.types import TextEmbedding", True),
    ("import imagen_jaxlike.build, jax", True),
    ("import imagen_jax.build", False),
    ("from imagen_jax import load, stage", False),
    ("from imagen_jax.imagen import image_keys", False),
    ("def f():\n  from imagen_jax.data import images", False),
    ("import imagen_jax\nimagen_jax.samples.join([])", False),
    ("from imagen_jax import *", False),
  ],
)
@pytest.mark.parametrize(
  "path", ["launch/a.ipynb", "a.ipynb", "examples/a.py", "studies/x/a.py"]
)
def test_planted_private_uses_are_found(tmp_path, path, line, allowed):
  bad = tmp_path / path
  bad.parent.mkdir(parents=True, exist_ok=True)
  cells = [
    {"cell_type": "markdown", "source": ["import imagen_jax.build"]},
    {"cell_type": "code", "source": ["import math\n", "math.pi"]},
    {"cell_type": "code", "source": line.splitlines(keepends=True)},
  ]
  notebook = bad.suffix == ".ipynb"
  bad.write_text(json.dumps({"cells": cells}) if notebook else line)
  assert (private_uses(tmp_path) == []) == allowed


@pytest.mark.parametrize("verb", ["sample", "export"])
def test_sampling_does_not_import_tensorflow(verb):
  """Nor what else is in setup.py's extras and not in the core."""
  extras = {"tensorflow", "tensorflow_datasets", "grain", "tensorboard"}
  extras |= {"array_record", "gcsfs", "google.cloud.storage"}
  code = f"import imagen_jax.{verb}, sys; print(*{extras} & set(sys.modules))"
  run = subprocess.run(
    [sys.executable, "-c", code],
    cwd=PACKAGE.parent,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr
  assert run.stdout.strip() == ""
