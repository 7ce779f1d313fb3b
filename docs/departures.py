"""Collects what the code marks as its own choice, beyond the paper."""

import io
import pathlib
import re
import tokenize
from collections.abc import Iterator

MARK = "Not in the paper"


def page(root: pathlib.Path) -> str:
  """Returns the page of all marked choices, by file."""
  lines = [
    "# What departs from the paper",
    "",
    f'The code marks each choice that the paper does not make by "{MARK}". This'
    " page is every mark in the package and in the configs, with the sentences"
    " that follow it.",
    "",
    "Three departures are large enough for a page: see"
    " [what peers have](../paper_to_code.md#what-others-have-and-this-project-"
    "has-not), [accuracy and determinism](../accuracy.md) and"
    " [model cards](../model_cards.md).",
    "",
  ]
  for folder in ("imagen_jax", "configs"):
    for path in sorted((root / folder).rglob("*.py")):
      if folder == "imagen_jax" and "configs" in path.parts:
        continue  # the link to configs/
      if found := list(marks(path)):
        lines += [f"## {path.relative_to(root)}", ""]
        lines += [f"- line {number}: {text}" for number, text in found]
        lines.append("")
  return "\n".join(lines)


def marks(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields the line and the text of each mark in a file.

  The text reaches from the mark to the end of its paragraph, or to the next
  argument of an Args: or Attributes: block. It begins with the name of the
  argument or field that it is about, if there is one.
  """
  for number, block in blocks(path.read_text("utf-8")):
    text = "\n".join(block)
    for match in re.finditer(MARK.replace(" ", r"\s+"), text):
      line = text.count("\n", 0, match.start())
      kept = [text[match.start() :].split("\n")[0]]
      argument = re.match(r"\w+: ", block[line].strip())
      for later in block[line + 1 :]:
        if not later.strip() and kept[-1].endswith(":"):
          continue  # a list follows
        named = re.match(r"\w+: ", later.strip())
        less = _indent(later) < _indent(block[line])
        if not later.strip() or (named and (less or argument)):
          break
        # An item of a list stays one, below the mark's own line.
        kept.append(re.sub(r"^[*-] ", "\0", later.strip()))
      said = " ".join(" ".join(kept).split()).rstrip('" ')
      said = re.split(rf"(?<=.)\s*{MARK}", said)[0]
      about = _about(block, line)
      said = re.sub(r"([*_<>\[\]])", r"\\\1", said)
      said = said.replace(" \0", "\n  - ")
      yield number + line, f"`{about}`: {said}" if about else said


def blocks(source: str) -> Iterator[tuple[int, list[str]]]:
  """Yields docstrings and runs of comments with their first line's number."""
  run: list[str] = []
  start = last = 0
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.STRING and MARK[:3] in token.string:
      yield token.start[0], token.string.splitlines()
    if token.type != tokenize.COMMENT:
      continue
    text = token.string.lstrip("# ")
    if run and token.start[0] == last + 1:
      run.append(text)
    else:
      if run:
        yield start, run
      start, run = token.start[0], [text]
    last = token.start[0]
  if run:
    yield start, run


def _about(block: list[str], line: int) -> str:
  """Returns the argument or field that a line of a docstring describes."""
  depth = None
  for text in reversed(block[: line + 1]):
    if not text.strip():
      return ""
    found = re.match(r"\s+(\w+): \S", text)
    if found and (depth is None or _indent(text) < depth):
      return found[1]
    depth = _indent(text) if depth is None else depth
  return ""


def _indent(line: str) -> int:
  return len(line) - len(line.lstrip())
