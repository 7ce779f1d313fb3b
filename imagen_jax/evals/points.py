"""Points of a sweep over sampling settings, parsed from KEY=V1,V2,... ."""

import ast
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# The guidance weights of the paper's curves of base models (Fig. A.8, A.13).
GUIDANCE = (1, 1.25, 1.5, 1.75, 2, 3, 4, 5, 6, 7, 8, 9, 10)
Point = Mapping[str, Any]  # values by KEY or STAGE.KEY


def parse(sweeps: Sequence[str]) -> list[Point]:
  """Parses the flags of a sweep to all combinations of their values.

  Args:
    sweeps: each KEY=V1,V2,... or "guidance" for the paper's weights.

  Returns:
    The points; one without values if there are no flags.

  Raises:
    ValueError: a flag has no values or another form, or a key or a value occurs
      twice.
  """
  axes: dict[str, list[Any]] = {}
  for text in sweeps:
    key, _, listed = text.partition("=")
    values = [_value(word) for word in listed.split(",") if word.strip()]
    if text == "guidance":
      values = [*GUIDANCE]
    if not re.fullmatch(r"\w+(\.\w+)*", key) or not values:
      raise ValueError(
        f"--sweep is {text!r}, expected KEY=V1,V2,... such as steps=25,50, or"
        " guidance for the paper's weights"
      )
    if key in axes or len({*map(repr, values)}) < len(values):
      raise ValueError(f"--sweep has {text!r} twice, or one of its values")
    axes[key] = values
  return [
    dict(zip(axes, values, strict=True))
    for values in itertools.product(*axes.values())
  ]


def _value(word: str) -> Any:
  """Parses a number, or else returns the word."""
  try:
    value = ast.literal_eval(word.strip())
  except (SyntaxError, ValueError):
    return word.strip()
  return value if isinstance(value, int | float) else word.strip()


def label(point: Point) -> str:
  """Returns a point's name for files and plots, "guidance=2-steps=25"."""
  text = "-".join(f"{key}={value}" for key, value in point.items())
  return re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)


def changes(
  point: Point,
  names: Sequence[str],
  guided: Sequence[str],
  upsamples: Sequence[str],
) -> Iterator[tuple[str, str, Any]]:
  """Yields (stage, key of its sampling settings, value) of a point.

  A key without a stage is for all stages that it concerns: guidance for those
  that guide, aug_level for those that upsample, any other for all.

  Args:
    point: the point.
    names: all stages.
    guided: the stages with guidance.
    upsamples: the super-resolution stages.

  Raises:
    ValueError: a key concerns no stage.
  """
  for key, value in point.items():
    stage, dot, rest = key.partition(".")
    if dot and stage in names:
      concerned, key = [stage], rest
    else:
      concerned = {"guidance": guided, "aug_level": upsamples}.get(key, names)
    if not concerned:
      raise ValueError(
        f"--sweep has {key!r}, which concerns no stage of {', '.join(names)}"
      )
    for name in concerned:
      yield name, key, value
