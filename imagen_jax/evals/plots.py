"""Plots of a sweep: the distance to real images against the use of captions."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from imagen_jax import files

Line = Mapping[str, Any]  # of evals.lines
_Z_95 = 1.96  # standard errors, half of a normal interval of 95 %


def curves(
  lines: Sequence[Line],
) -> tuple[str, str, dict[str, list[tuple[Any, float, float, float, float]]]]:
  """Computes what pareto draws.

  The horizontal axis is the CLIP score, as in the paper. Without it, it is the
  share of claims that hold, and without a judge the value of the sweep's first
  key.

  Args:
    lines: the points of a sweep, in order.

  Returns:
    The labels of both axes. By the other keys' values, the points of a curve:
    (value of the first key, x, y, lower and upper end of x's interval).

  Raises:
    ValueError: the lines have no distance.
  """
  metric = next((m for m in ("fid", "frechet_pixels") if m in lines[0]), None)
  if metric is None:
    raise ValueError("the sweep has no distance to plot, expected fid or"
                     " frechet_pixels among its metrics")  # fmt: skip
  first = next(iter(lines[0]["point"]))
  across, place = _axis(lines[0])
  found: dict[str, list] = {}
  for number, line in enumerate(lines):
    (_, value), *others = line["point"].items()
    series = ", ".join(f"{key}={other}" for key, other in others)
    at = value if isinstance(value, int | float) else number
    x, low, high = place(line) if place else (at, at, at)
    point = (value, x, line[metric]["distance"], low, high)
    found.setdefault(series, []).append(point)
  count = lines[0][metric]["num_images"][0]
  up = {"fid": "FID", "frechet_pixels": "Frechet distance of pixels"}[metric]
  return across or first, f"{up}, {count} images", found


def _axis(
  line: Line,
) -> tuple[str, Callable[[Line], tuple[float, float, float]] | None]:
  """Returns the measured horizontal axis: its label, and how to read a line.

  The function returns x and both ends of its interval of 95 %. It is None where
  neither CLIP nor a judge measured how well images match captions.
  """

  def by_clip(line):
    score, error = (line["clip"][k] for k in ("score", "standard_error"))
    return score, score - _Z_95 * error, score + _Z_95 * error

  def by_judge(line):
    low, high = line["claims_that_hold_95"]["generated"]["all"]
    return line["claims_that_hold"]["generated"]["all"], low, high

  if "clip" in line:
    model = line["clip"]["model"]
    return f"CLIP score of {model} (95 % interval)", by_clip
  if "claims_that_hold" in line:
    return "claims that hold (95 % interval)", by_judge
  return "", None


def pareto(lines: Sequence[Line], path: epath.Path) -> None:
  """Plots the points of a sweep, each named by the first key's value.

  As in the paper's figures 4 and A.8: the best points are on the lower right.

  Args:
    lines: the points' results, in order.
    path: the PNG.

  Raises:
    ValueError: the lines have no distance, or the file cannot be written.
  """
  from matplotlib.figure import Figure  # of the extra `plots`

  across, up, found = curves(lines)
  figure = Figure(figsize=(7, 5), layout="constrained")
  axes = figure.subplots()
  for series, points in found.items():
    values, x, y, low, high = zip(*points, strict=True)
    errors = (
      [a - b for a, b in zip(x, low, strict=True)],
      [b - a for a, b in zip(x, high, strict=True)],
    )
    style = dict(marker="o", markersize=4, capsize=2, elinewidth=0.6)
    axes.errorbar(x, y, xerr=errors, label=series or None, **style)
    for value, *at in zip(values, x, y, strict=True):
      axes.annotate(
        str(value), at, xytext=(4, 4), textcoords="offset points", fontsize=8
      )
  axes.set_xlabel(across)
  axes.set_ylabel(up)
  axes.set_title(f"each point: {next(iter(lines[0]['point']))}", fontsize=10)
  axes.grid(alpha=0.3)
  if len(found) > 1:
    axes.legend()
  data = io.BytesIO()
  figure.savefig(data, format="png", dpi=120)
  files.write(path, data.getvalue(), parents=True)
