"""Suites of prompts by category, and folders of their images.

A suite is a file of (category, prompt): tab-separated, with or without a
header, or a CSV with columns named so. DrawBench and PartiPrompts are read as
they are published.
"""

import csv
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from imagen_jax import files

HERE = pathlib.Path(__file__).parent
_COLUMNS = {"category": "category", "prompt": "prompt", "prompts": "prompt"}


class Entry(NamedTuple):
  """Holds a prompt of a suite.

  Attributes:
    category: the kind of difficulty.
    prompt: the text.
  """

  category: str
  prompt: str


def names() -> list[str]:
  """Returns the names of the shipped suites."""
  return sorted(path.stem for path in HERE.glob("*.tsv"))


def read(name: str) -> list[Entry]:
  """Reads a suite.

  Args:
    name: of a shipped suite, such as "shapes", or the path of a .tsv or .csv.

  Raises:
    ValueError: the file cannot be read, or a line has no category and prompt.
  """
  shipped = HERE / f"{name}.tsv"
  path = epath.Path(shipped if name in names() else files.expand(name))
  if path.suffix not in (".tsv", ".csv"):
    raise ValueError(
      f"--suite is {name!r}, expected {' or '.join(names())}, or a .tsv or .csv"
      " file of categories and prompts"
    )
  lines = files.read_lines(path, "suite", blanks="\r")
  delimiter = "\t" if path.suffix == ".tsv" else ","
  quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
  rows = list(csv.reader(lines, delimiter=delimiter, quoting=quoting))
  header = (
    [_COLUMNS.get(cell.strip().lower()) for cell in rows[0]] if rows else []
  )
  if {"category", "prompt"} <= {*header}:
    places, first = (header.index("category"), header.index("prompt")), 1
  else:
    places, first = (0, 1), 0
  found = []
  for number, row in enumerate(rows[first:], start=first + 1):
    if not any(cell.strip() for cell in row):
      continue
    cells = [row[i].strip() if i < len(row) else "" for i in places]
    if not all(cells):
      raise ValueError(
        f"line {number} of suite {path} is {files.quote(row)}, expected a"
        " category and a prompt"
      )
    found.append(Entry(*cells))
  if not found:
    raise ValueError(f"suite {path} has no prompt, expected one per line")
  return found


def write_folders(
  folder: epath.Path,
  entries: Sequence[Entry],
  images: Sequence[epath.Path],
  about: dict[str, Any],
) -> None:
  """Writes images of a suite for other scorers.

  FOLDER/geneval has GenEval's layout: NNNNN/metadata.jsonl, and the images as
  NNNNN/samples/NNNN.png. FOLDER/prompts.tsv names the file, category and prompt
  of each image in the plain folder FOLDER/images.

  Args:
    folder: the folder.
    entries: the suite.
    images: the files in FOLDER/images, as many for each entry, in order.
    about: the settings, for FOLDER/suite.json.

  Raises:
    ValueError: a file cannot be read or written.
  """
  each = len(images) // len(entries)
  listed = ["file\tcategory\tprompt"]
  for number, entry in enumerate(entries):
    place = folder / "geneval" / f"{number:05}"
    metadata = {"tag": entry.category, "prompt": entry.prompt}
    text = json.dumps(metadata, ensure_ascii=False) + "\n"
    files.write(place / "metadata.jsonl", text, parents=True)
    for i, path in enumerate(images[number * each : (number + 1) * each]):
      copy = place / "samples" / f"{i:04}.png"
      files.write(copy, _bytes(path), parents=True)
      listed.append(f"images/{path.name}\t{entry.category}\t{entry.prompt}")
  files.write(folder / "prompts.tsv", "\n".join(listed) + "\n")
  files.write(folder / "suite.json", json.dumps(about, indent=2) + "\n")


def read_geneval(folder: epath.Path) -> list[tuple[Entry, list[epath.Path]]]:
  """Reads a folder of GenEval's layout, of any model.

  Args:
    folder: the folder, or one with a folder `geneval`.

  Returns:
    For each prompt its entry and its images, in order.

  Raises:
    ValueError: the folder has another layout.
  """
  inner = folder / "geneval"
  folder = inner if inner.is_dir() else folder
  found = []
  for place in sorted(folder.glob("[0-9]*")):
    path = place / "metadata.jsonl"
    (line, *_) = [*files.read_lines(path, "metadata"), ""]
    about = files.parse_json(line, str(path))
    if not isinstance(about, dict) or not isinstance(about.get("prompt"), str):
      raise ValueError(f"{path} has no prompt, expected GenEval's metadata")
    images = sorted((place / "samples").glob("*.png"))
    if not images:
      raise ValueError(f"{place}/samples has no image, expected 0000.png")
    found.append((Entry(str(about.get("tag", "")), about["prompt"]), images))
  if not found:
    raise ValueError(
      f"{folder} has no folder 00000, expected GenEval's layout, as evaluate"
      " --suite writes it"
    )
  return found


def _bytes(path: epath.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise ValueError(f"{path} cannot be read: {files.reason(error)}") from error
