"""Sweeps of an evaluation over sampling settings: a line for each point."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from imagen_jax import build, jobs, scoring
from imagen_jax.evals import lines, plots, points
from imagen_jax.parallel.processes import from_first, shared_errors
from imagen_jax.progress import Progress
from imagen_jax.scoring import Evaluation
from imagen_jax.stage import Sampling


def plan(
  evaluation: Evaluation,
) -> list[tuple[points.Point, ConfigDict, tuple[Sampling, ...]]]:
  """Returns the points of --sweep, each with its config and its settings.

  Raises:
    ValueError: a point cannot be used, before any is sampled.
  """
  args, found = evaluation.args, []
  for point in points.parse(args.sweep):
    fixed = {}
    for flag in ("guidance", "steps"):
      if args[flag].value is not None:
        if flag in point:
          raise ValueError(f"--{flag} is given beside --sweep={flag}")
        fixed[flag] = args[flag].value
    try:
      config = scoring.changed(
        evaluation.config, evaluation.cascade, fixed | point
      )
      samplings = build.cascade(config).samplings
    except ValueError as error:
      raise ValueError(
        f"--sweep has the point {points.label(point)}: {error}"
      ) from error
    found.append((point, config, samplings))
  return found


def summary(name: str, line: Mapping[str, Any]) -> str:
  """Returns the main numbers of a line for the log."""
  parts = [name]
  for metric in ("fid", "frechet_pixels"):
    if metric in line:
      parts.append(f"{metric} {line[metric]['distance']:.4g}")
  if "clip" in line:
    parts.append(f"clip {line['clip']['score']:.4f}")
  if "cmmd" in line:
    parts.append(f"cmmd {line['cmmd']['distance']:.4g}")
  if "claims_that_hold" in line:
    parts.append(f"judge {line['claims_that_hold']['generated']['all']:.3f}")
  return "  ".join(parts)


def run(evaluation: Evaluation) -> None:
  """Samples and measures all points of a sweep, except those that are done.

  Each point has a line, a folder of images and a sheet. All points share their
  programs as far as their settings are numbers.
  """
  outdir, split = evaluation.outdir, evaluation.args.split
  results, first = outdir / lines.FILE, jax.process_index() == 0
  todo = plan(evaluation)
  progress = Progress("sweep", len(todo), unit="point", quiet=not first)
  of_sweep = []
  for number, (point, config, samplings) in enumerate(todo, start=1):
    name = points.label(point)
    job = evaluation.plan(outdir / "images" / name, (name, samplings))
    with shared_errors():
      known = (
        lines.read(results).get(evaluation.line_id(job)) if first else None
      )
    if not from_first(np.array(known is not None)):
      jobs.sample_all(job, name)
      known = evaluation.about(config, point, job) | evaluation.measure(job)
      with shared_errors():
        if first:
          lines.add(results, known)
          evaluation.write_sheet(job, outdir / f"{split}-{name}.png")
    of_sweep.append(known)
    progress.show(number, summary(name, known) if first else "")
  if first and evaluation.args.plot:
    plots.pareto(of_sweep, outdir / f"{split}-sweep.png")
