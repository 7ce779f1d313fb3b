"""Rule-based judge of which claims of a scene an image shows.

Only pixels are read. First the objects that are found are matched with the
scene's groups. A group never gets more objects than its count, nor an object
with neither its colour nor its shape. Unmatched objects are extra. Then each
claim is checked on its own:

background   the background has the stated colour
count        the group has as many objects as stated, and no extra object counts
             against it: an extra object with the colour and shape of a group
             counts against that group, any other one against every group
color, shape, size, fill
             the group has at least one object, and all its objects look so
relation     both groups have objects, and each object of the first group is on
             the stated side of each object of the second group
place        the group has objects, and they are in the stated place
"""

import collections
import dataclasses
from collections.abc import Iterable

import numpy as np
from scipy import optimize

from imagen_jax.shapes.objects import Found, find_objects
from imagen_jax.shapes.scenes import (
  CANVAS,
  MIDDLE_LIMIT,
  PLACE_LIMIT,
  Scene,
)

KINDS = (
  "background",
  "count",
  "color",
  "shape",
  "size",
  "fill",
  "relation",
  "place",
)
_LOOKS = {"color": 3.0, "shape": 3.0, "size": 1.0, "fill": 1.0}  # match weights
_TOLERANCE = 8  # pixels by which a stated position may be missed
_VERTICAL = ("above", "below", "top", "bottom")
_FAR_SIDE = ("below", "right of", "bottom", "right")


@dataclasses.dataclass(frozen=True)
class Claim:
  """Holds one statement of a scene, and whether an image shows it."""

  kind: str  # one of KINDS
  group: int | None  # the group's index; None for a statement on the image
  holds: bool  # whether the image shows it


def judge(image, scene: Scene) -> list[Claim]:
  """Checks a scene's claims on [H, W, 3], uint8 or float in [-1, 1]."""
  background, found = find_objects(image)
  return check(background, found, scene)


def check(background: str, found: list[Found], scene: Scene) -> list[Claim]:
  """Checks a scene's claims on the objects found in an image."""
  members, extra = _match(found, scene)
  claims = [Claim("background", None, background == scene.background)]
  for i, (group, mine) in enumerate(zip(scene.groups, members)):
    spoilt = any(_spoils(f, i, scene) for f in extra)
    counted = len(mine) == group.count and not spoilt
    claims.append(Claim("count", i, counted))
    for kind in _LOOKS:
      alike = all(getattr(f, kind) == getattr(group, kind) for f in mine)
      claims.append(Claim(kind, i, bool(mine) and alike))
  if len(members) == 2:
    holds = _related(*members, scene.relation)
    return [*claims, Claim("relation", None, holds)]
  return [*claims, Claim("place", None, _in_place(*members, scene.relation))]


def tally(claims: Iterable[Claim]) -> collections.Counter:
  """Counts claims by (kind, holds); tallies of several hosts add up with +."""
  return collections.Counter((c.kind, c.holds) for c in claims)


def share(counts: collections.Counter) -> dict[str, float]:
  """Computes the share of claims that hold, for each kind counted and "all"."""
  total, held = collections.Counter(), collections.Counter()
  for (kind, holds), n in counts.items():
    for key in (kind, "all"):
      total[key] += n
      held[key] += n * holds
  return {k: held[k] / total[k] for k in (*KINDS, "all") if total[k]}


def _match(found, scene) -> tuple[list[list[Found]], list[Found]]:
  """Matches objects with groups by best agreement; returns extra ones too."""
  slots = [
    i for i, group in enumerate(scene.groups) for _ in range(group.count)
  ]
  members = [[] for _ in scene.groups]
  scores = np.array([[_agreement(f, i, scene) for i in slots] for f in found])
  scores = scores.reshape(len(found), len(slots))
  taken = set()
  for n, slot in zip(*optimize.linear_sum_assignment(scores, maximize=True)):
    if scores[n, slot] > 0:
      members[slots[slot]].append(found[n])
      taken.add(n)
  return members, [f for n, f in enumerate(found) if n not in taken]


def _agreement(found: Found, i: int, scene: Scene) -> float:
  """Scores an object's fit to group i; 0 if both colour and shape differ."""
  group = scene.groups[i]
  if found.color != group.color and found.shape != group.shape:
    return 0.0
  alike = [getattr(found, kind) == getattr(group, kind) for kind in _LOOKS]
  # Position decides between groups whose objects look alike in the image.
  along = _along(found, scene.relation) / CANVAS
  weights = list(_LOOKS.values())
  return np.dot(alike, weights) + 0.1 * (along if i else 1 - along)


def _spoils(extra: Found, i: int, scene: Scene) -> bool:
  """Tests whether an extra object counts against group i."""
  looks = [(g.color, g.shape) for g in scene.groups]
  look = (extra.color, extra.shape)
  return look == looks[i] or look not in looks


def _along(found: Found, relation: str) -> float:
  """Measures the object's centre from the border that the relation names."""
  centre = found.cy if relation in _VERTICAL else found.cx
  return CANVAS - centre if relation in _FAR_SIDE else centre


def _related(first, second, relation: str) -> bool:
  """Tests whether all of `first` is on the stated side of all of `second`."""
  if not (first and second):
    return False
  ahead = [(_along(f, relation), f.extent / 2) for f in first]
  behind = [(_along(f, relation), f.extent / 2) for f in second]
  centred = max(c for c, _ in ahead) < min(c for c, _ in behind)
  end, start = max(c + h for c, h in ahead), min(c - h for c, h in behind)
  return centred and end <= start + _TOLERANCE


def _in_place(mine, place: str) -> bool:
  """Tests whether the objects of a single group are in the stated place."""
  if not mine:
    return False
  if place == "middle":
    centre = np.mean([(f.cx, f.cy) for f in mine], axis=0)
    miss = np.hypot(*(centre - CANVAS / 2))
    return bool(miss < MIDDLE_LIMIT + _TOLERANCE)
  return all(_along(f, place) < PLACE_LIMIT + _TOLERANCE for f in mine)
