"""Every name, file, link and command of the pages is one, and they run.

The tutorials are followed to the letter but for the number of steps (slow).
"""

import ast
import functools
import pathlib
import re
import shlex

import pytest

from imagen_jax import compile as compile_verb
from imagen_jax import (
  evaluate,
  export,
  pretrain,
  sample,
  train,
)
from imagen_jax.build import configs
from imagen_jax.cli import command_line, program
from imagen_jax.training import preemption

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text("utf-8") for path in DOCS.glob("*.md")}
VERBS = {
  "compile": compile_verb,
  "evaluate": evaluate,
  "export": export,
  "pretrain": pretrain,
  "sample": sample,
  "train": train,
}
FEW = {  # what makes each verb short
  "train": ["--config.train.steps=2", "--config.optimizer.warmup_steps=1"],
  "sample": ["--steps=1"],
  "evaluate": ["--steps=1"],
  "export": [],
}
ENDINGS = "py|md|sh|json|toml|txt|png|safetensors"


def code_names(text: str) -> list[str]:
  """Returns the names of the package that a page links to."""
  found = re.findall(r"\{py:\w+\}`([^`]+)`", text)
  return [re.sub(r".*<(.*)>", r"\1", name).lstrip("~") for name in found]


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text("utf-8"))


def is_name(name: str) -> bool:
  """Returns True for a module of the package, or a definition in one."""
  path, parts = ROOT, name.split(".")
  while parts and (path / parts[0]).is_dir():
    path /= parts.pop(0)
  if parts and (path / f"{parts[0]}.py").is_file():
    node: ast.AST | None = parsed(path / f"{parts.pop(0)}.py")
  elif (path / "__init__.py").is_file():
    node = parsed(path / "__init__.py")
  else:
    return False
  for part in parts:
    kinds = ast.ClassDef | ast.FunctionDef
    inner = [n for n in node.body if isinstance(n, kinds) and n.name == part]
    if not inner:
      return False
    node = inner[0]
  return True


def paths(text: str) -> list[str]:
  """Returns the files of the repository that a page names in `code`."""
  text = re.sub(r"```.*?```", "", text, flags=re.S)
  found = re.findall(rf"`([\w.-]+/[\w./-]+\.(?:{ENDINGS})(?:::\w+)?)", text)
  return [
    path for path in found if not re.match("[A-Z]+/|runs/|samples/", path)
  ]


def is_file(path: str) -> bool:
  """Returns True for a file, or for a test of one as FILE::TEST."""
  name, _, test = path.partition("::")
  places = [ROOT / name, ROOT / "tests" / name, ROOT / "imagen_jax" / name]
  found = [place for place in places if place.is_file()]
  return bool(found) and (not test or f"def {test}(" in found[0].read_text())


def links(text: str) -> list[str]:
  """Returns the relative links of a page, without their anchors."""
  found = re.findall(r"\]\(([^()\s]+)\)", text)
  return [link.partition("#")[0] for link in found if ":" not in link]


def commands(text: str) -> list[str]:
  """Returns the calls of verbs in a page's blocks of code."""
  blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.S | re.M)
  lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
  verb = r"python -m imagen_jax\.[\w.]+\s+--.*"
  found = [re.search(verb, line) for line in lines]
  return [match[0].replace("$s", "shapes16") for match in found if match]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page):
  text = PAGES[page]
  assert [name for name in code_names(text) if not is_name(name)] == []
  assert [path for path in paths(text) if not is_file(path)] == []
  made = "generated/"  # by generate.py, which Sphinx checks
  assert [
    link
    for link in links(text)
    if link and not link.startswith(made) and not (DOCS / link).exists()
  ] == []


def test_pages_name_much():
  assert len(code_names(PAGES["algorithm.md"])) > 20
  assert len(paths(PAGES["paper_to_code.md"])) > 15
  assert sum(len(commands(text)) for text in PAGES.values()) > 15


@pytest.mark.parametrize(
  "name",
  ["imagen_jax.no", "imagen_jax.stage.no", "imagen_jax.stage.Stage.no", "no"],
)
def test_what_is_no_name_is_found(name):
  assert not is_name(name)


@pytest.mark.parametrize(
  "path", ["imagen_jax/no.py", "tests/docs/test_pages.py::no"]
)
def test_what_is_no_file_is_found(path):
  assert paths(f"`{path}`") == [path]
  assert not is_file(path)


# launch/test_pods_page.py runs those of pods.md.
@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"pods.md"}))
def test_commands_have_flags_and_configs_that_exist(page, monkeypatch):
  monkeypatch.chdir(ROOT)
  for command in commands(PAGES[page]):
    _, _, module, *args = shlex.split(command)
    verb = VERBS.get(module.removeprefix("imagen_jax."))
    if verb is not None:  # the two programs of text and shapes have no config
      command_line.parse(verb.define_flags, args)


def test_a_command_with_a_wrong_flag_is_found(monkeypatch):
  monkeypatch.chdir(ROOT)
  (command,) = commands("```\npython -m imagen_jax.train \\\n  --no=1\n```")
  with pytest.raises(command_line.BadFlags, match="no"):
    command_line.parse(train.define_flags, shlex.split(command)[3:])


def test_paper_to_code_has_every_equation_figure_and_table():
  page = PAGES["paper_to_code.md"]
  rows = [line.split("|")[1] for line in page.splitlines() if line[:2] == "| "]
  named = " ".join(rows)
  for first, last in re.findall(r"A\.(\d+)-A\.(\d+)", named):
    named += "".join(f" A.{i}," for i in range(int(first), int(last) + 1))
  wanted = [f"Eq. {i}" for i in range(1, 7)]
  wanted += [f"Table {i}" for i in (1, 2, "A.1")]
  wanted += [f"Sec. {i}" for i in (2.1, 2.2, 2.3, 2.4, 2.5, 3, 4.1, 4.4, 5, 6)]
  wanted += ["App. A", "App. B.1", "App. C", "App. E"]
  wanted += [f"App. {part}" for part in ("D.1", "D.2", "D.3", "F.1", "F.3")]
  wanted += [f"A.{i}" for i in range(1, 33)]
  lacks = [
    it for it in wanted if not re.search(rf"{re.escape(it)}(?!\d)", named)
  ]
  assert lacks == []


def test_exit_codes_are_the_codes():
  rows = re.findall(r"^\| (\d+) \|", PAGES["exit_codes.md"], re.M)
  codes = {0, 1, 2, 130, preemption.SAVED, program.LOST}
  codes.add(compile_verb.NOT_FITTING)
  assert {int(row) for row in rows} == codes


def test_the_citation_has_the_version():
  text = (ROOT / "CITATION.cff").read_text("utf-8")
  init = (ROOT / "imagen_jax" / "__init__.py").read_text("utf-8")
  version = re.search(r'__version__ = "(.+)"', init)[1]
  assert f"\nversion: {version}\n" in text


def test_every_page_is_in_the_index():
  listed = re.findall(r"^[\w/]+$", PAGES["index.md"], re.M)
  assert {f"{name}.md" for name in listed if "/" not in name} == (
    PAGES.keys() - {"index.md"}
  )


@pytest.mark.parametrize("name", ["five_minutes.md", "weights.md"])
def test_configs_that_python_loads_exist(name):
  for config in re.findall(r'imagen_jax\.load\("([^"]+)"', PAGES[name]):
    assert configs.find_config(config)


@pytest.mark.slow
def test_the_python_of_five_minutes(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  blocks = re.findall(r"```python\n(.*?)```", PAGES["five_minutes.md"], re.S)
  names = {}
  exec("\n".join(blocks), names)
  assert len(list((tmp_path / "samples").glob("a_green_star-*.png"))) == 2
  assert names["samples"].stages["shapes16"].shape == (2, 16, 16, 3)


@pytest.mark.slow
def test_the_commands_of_captioned_shapes(tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  calls = commands(PAGES["captioned_shapes.md"])
  assert len(calls) == 5
  for call in calls:
    _, _, module, *args = shlex.split(call)
    verb = module.removeprefix("imagen_jax.")
    VERBS[verb].main([*args, *FEW[verb]])
  for made in (
    "runs/shapes16/dry_run.png",
    "runs/shapes16/metrics.jsonl",
    "shapes16.safetensors",
    "evaluation/test.json",
  ):
    assert (tmp_path / made).exists()
  assert len(list((tmp_path / "samples").glob("a_red_star-*.png"))) == 1
  assert "claims_that_hold" in capfd.readouterr().out
