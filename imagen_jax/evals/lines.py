"""Results of evaluations in a file of JSON lines, each with an id.

A line's id is a checksum of all that determines its numbers.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from imagen_jax import files

FILE = "evaluations.jsonl"


def checksum(value: Any) -> str:
  """Computes the SHA-256 of a JSON value, without regard to order of keys."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read(path: epath.Path) -> dict[str, dict[str, Any]]:
  """Reads the lines of a file by their ids; none if there is no file.

  Raises:
    ValueError: the file cannot be read, or a line is no result.
  """
  if not path.exists():
    return {}
  found = {}
  for number, line in enumerate(files.read_lines(path, "results"), start=1):
    value = files.parse_json(line, f"line {number} of {path}")
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
      raise ValueError(
        f"line {number} of {path} has no id, expected a line that evaluate"
        " wrote: move the file away"
      )
    found[value["id"]] = value
  return found


def add(path: epath.Path, line: Mapping[str, Any]) -> None:
  """Adds a line, or replaces the line with its id.

  Raises:
    ValueError: the file cannot be read or written.
  """
  found = {**read(path), line["id"]: dict(line)}
  text = "".join(json.dumps(value) + "\n" for value in found.values())
  files.write(path, text, parents=True)
