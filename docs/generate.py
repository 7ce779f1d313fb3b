"""Writes the pages of the site that come from the code.

Sphinx calls write before it reads the pages (conf.py). The pages lie in
docs/generated, which git ignores, so that they cannot go stale.
"""

import os
import pathlib
import pkgutil
import re
import shutil
from collections.abc import Iterator, Sequence

import departures
import figures
import keys
import sizes
import verbs

import imagen_jax
from imagen_jax.build import configs

ROOT = pathlib.Path(imagen_jax.__file__).parents[1]
# Pages of the repository that the site shows as they are, by their path.
PROJECT = {
  "README.md": "readme",
  "CHANGELOG.md": "changelog",
  "CONTRIBUTING.md": "contributing",
  "FAULTS.md": "faults",
  "SECURITY.md": "security",
  "launch/README.md": "launch",
  "launch/compiled.md": "compiled",
  "studies/demo_training.md": "demo_training",
}
SECTIONS = ("Args:", "Returns:", "Yields:", "Raises:", "Attributes:")


def write(docs: pathlib.Path) -> None:
  """Writes all generated pages into docs/generated."""
  out = docs / "generated"
  shutil.rmtree(out, ignore_errors=True)
  pages = {
    "api": "# Modules\n\n" + toctree(f"api_{name}" for name in packages()),
    "config_keys": keys.page(),
    "flags": verbs.page(),
    "shipped_configs": shipped_configs(),
    "sizes": sizes.page(ROOT),
    "departures": departures.page(ROOT),
  }
  for source, name in PROJECT.items():
    path = ROOT / source
    pages[name] = relink(path.read_text("utf-8"), path, out / f"{name}.md")
  for name, modules in packages().items():
    pages[f"api_{name}"] = api_page(name, modules)
  out.mkdir()
  for name, text in pages.items():
    (out / f"{name}.md").write_text(text, "utf-8")
  for name, text in figures.files().items():
    (out / name).write_text(text, "utf-8")


def packages() -> dict[str, list[str]]:
  """Returns the modules of each part of the package, in alphabetical order.

  A module directly in imagen_jax belongs to the part "imagen_jax".
  """
  found: dict[str, list[str]] = {}
  for info in pkgutil.walk_packages(imagen_jax.__path__, "imagen_jax."):
    part = info.name.split(".")[1]
    if part == "configs":  # shipped_configs shows them
      continue
    alone = info.name.count(".") == 1 and not info.ispkg
    found.setdefault("imagen_jax" if alone else part, []).append(info.name)
  return {part: sorted(found[part]) for part in sorted(found)}


def api_page(part: str, modules: Sequence[str]) -> str:
  """Returns the page of a part: the public names of its modules."""
  name = part if part == "imagen_jax" else f"imagen_jax.{part}"
  lines = [f"# {name}", ""]
  for module in modules:
    lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}"]
    lines += ["```", ""]
  return "\n".join(lines)


def toctree(names: Iterator[str]) -> str:
  """Returns a table of contents of pages in the same folder."""
  return "\n".join(["```{toctree}", ":maxdepth: 1", "", *names, "```", ""])


def shipped_configs() -> str:
  """Returns the page of the shipped configs, with each file's docstring."""
  lines = [
    "# Shipped configs",
    "",
    "`--config=NAME` and `imagen_jax.load(NAME)` take these names in any"
    " folder. A name may be followed by a colon and an argument.",
    "",
  ]
  for name in configs.config_names():
    module = configs.load_module(name)
    lines += [f"## {name}", "", fenced(module.__doc__ or ""), ""]
  return "\n".join(lines)


def fenced(text: str) -> str:
  """Returns plain text as Markdown: its indented lines become code blocks."""
  lines, inside = [], False
  for line in text.strip().splitlines():
    if line.startswith("  ") and not inside:
      lines.append("```sh")
      inside = True
    elif line and not line.startswith("  ") and inside:
      while not lines[-1]:
        lines.pop()
      lines += ["```", ""]
      inside = False
    lines.append(line[2:] if inside else line)
  return "\n".join([*lines, "```"] if inside else lines)


def relink(text: str, source: pathlib.Path, page: pathlib.Path) -> str:
  """Points the relative links of a Markdown file at pages of the site.

  A link to a file that the site does not have becomes the file's path.

  Args:
    text: the file's text.
    source: the file, to whose folder its links are relative.
    page: the page that will have the text.
  """
  docs = ROOT / "docs"
  homes = {ROOT / path: docs / "generated" / f"{name}.md"
           for path, name in PROJECT.items()}  # fmt: skip

  def target(match: re.Match) -> str:
    label, link = match[1], match[2]
    path, hash_, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", link):
      return match[0]
    file = pathlib.Path(os.path.normpath(source.parent / path))
    file = file / "README.md" if file.is_dir() else file
    there = homes.get(file, file)
    if there.suffix in (".md", ".png", ".gif", ".svg") and (
      there.is_relative_to(docs) or there.suffix != ".md"
    ):
      return f"{label}({os.path.relpath(there, page.parent)}{hash_}{anchor})"
    return f"`{file.relative_to(ROOT)}`"

  return re.sub(r"(!?\[[^\]]*\])\(([^()\s]+)\)", target, text)


def fields_block(net: type) -> list[str]:
  """Returns a linen module's fields as an Attributes: block."""
  found = [(name, text) for name, text in keys.comments(net).items() if text]
  if not found:
    return []
  return ["", "Attributes:", *(f"  {name}: {text}" for name, text in found), ""]


def restructured(lines: Sequence[str]) -> list[str]:
  """Turns the plain text of a docstring into reStructuredText.

  Indented lines outside of a list and of a section such as Args: become a
  literal block. Signs such as * and | stand for themselves.
  """
  result, kind = [], "text"
  for line in lines:
    line = re.sub(r"^\* ", "- ", line)
    before, indented = kind, line.startswith(" ")
    if line in SECTIONS:
      kind = "section"
    elif re.match(r"- |\d+\. ", line):
      kind = "list"
    elif line and not indented:
      kind = "text"
    elif indented and kind == "text":
      kind = "literal"
      result += ["::", ""]
    if kind != before and result and result[-1]:
      result.append("")
    result.append(line if kind == "literal" else _escaped(line))
  return result


def _escaped(line: str) -> str:
  """Returns a line with reStructuredText's signs escaped outside of `code`."""
  parts = line.split("`")
  for i in range(0, len(parts), 2):
    parts[i] = re.sub(r"(\\|[*|]|(?<=\w)_(?!\w))", r"\\\1", parts[i])
  return "``".join(parts)
