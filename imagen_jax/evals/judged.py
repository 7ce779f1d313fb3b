"""Shares of captions' claims that images show, with intervals.

Each of several processes judges its own images. The counts are summed.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imagen_jax.evals.intervals import wilson
from imagen_jax.parallel.processes import gather_host_stats, shared_errors
from imagen_jax.shapes.judge import KINDS, judge, share, tally
from imagen_jax.shapes.scenes import Scene, from_json

_COUNTED = [(kind, holds) for kind in KINDS for holds in (False, True)]


def read_scenes(
  records: Sequence[Mapping[str, Any]], numbers: Sequence[int]
) -> list[Scene]:
  """Reads the scenes of records.

  Args:
    records: records with a `scene`.
    numbers: the records' numbers in their split, for messages.

  Raises:
    ValueError: a record has no valid scene; it is named.
  """
  scenes = []
  for number, record in zip(numbers, records, strict=True):
    try:
      scenes.append(from_json(record["scene"])[0])
    except ValueError as error:
      raise ValueError(f"record {number}: {error}") from error
  return scenes


def count_claims(
  read: Callable[[int], np.ndarray], *scenes: Sequence[Scene]
) -> list[collections.Counter]:
  """Counts the claims of scenes by (kind, whether the image shows it).

  All processes call it. Each judges every n-th image, where n is their number.

  Args:
    read: called as read(i), returns image i, uint8 [H, W, 3].
    *scenes: lists of scenes; scene i of each is compared with image i.

  Returns:
    The counts over all images, for each list of scenes.

  Raises:
    ValueError: on all processes, if an image cannot be read.
  """
  found = [collections.Counter() for _ in scenes]
  with shared_errors():
    for i in range(jax.process_index(), len(scenes[0]), jax.process_count()):
      image = read(i)
      for counts, listed in zip(found, scenes, strict=True):
        counts += tally(judge(image, listed[i]))
  numbers = [counts[key] for counts in found for key in _COUNTED]
  summed = gather_host_stats(numbers, "")[0].sum(0).reshape(len(scenes), -1)
  return [
    +collections.Counter(dict(zip(_COUNTED, row.tolist(), strict=True)))
    for row in summed
  ]


def shares(counts: collections.Counter) -> dict[str, float]:
  """Computes the share of claims that hold, by kind and over all kinds."""
  return {kind: round(value, 4) for kind, value in share(counts).items()}


def intervals(counts: collections.Counter) -> dict[str, list[float]]:
  """Computes the 95 % interval of each of the shares."""
  found = {}
  for kind in share(counts):
    of_kind = {key: n for key, n in counts.items() if kind in (key[0], "all")}
    held = sum(n for (_, holds), n in of_kind.items() if holds)
    found[kind] = [round(v, 4) for v in wilson(held, sum(of_kind.values()))]
  return found
