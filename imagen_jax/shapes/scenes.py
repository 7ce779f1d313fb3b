"""Scenes of captioned_shapes: their contents and their random layouts."""

import dataclasses
import json

import numpy as np

from imagen_jax import files

COLORS = {
  "red": (220, 40, 40),
  "green": (40, 160, 60),
  "blue": (40, 80, 220),
  "yellow": (245, 215, 50),
  "purple": (140, 60, 190),
  "orange": (245, 140, 30),
  "black": (25, 25, 25),
  "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star")
FILLS = ("plain", "striped", "dotted")
SIZES = {"small": (44, 54), "large": (80, 92)}  # pixels, both ends included
RELATIONS = ("above", "below", "left of", "right of")
CONVERSE = dict(zip(RELATIONS, ("below", "above", "right of", "left of")))
PLACES = ("top", "bottom", "left", "right", "middle")
CANVAS = 256
SPLITS = ("train", "test", "test_unseen")

# All distances are in pixels of the canvas.
BORDER = 6  # least distance of an object from the border
GAP = 8  # least distance between two objects' bounding boxes
RELATION_GAP = 12  # least distance between two groups along their relation
PLACE_LIMIT = 0.42 * CANVAS  # centres of a group at the top are above this
MIDDLE_LIMIT = 0.12 * CANVAS  # a middle group is less than this off centre

_PAIR_COUNTS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))
_PROPOSALS = 128  # layouts proposed at a time; the first valid one is used


@dataclasses.dataclass(frozen=True)
class Group:
  """Describes up to three objects that look alike."""

  count: int  # 1 to 3
  size: str  # one of SIZES
  fill: str  # one of FILLS
  color: str  # one of COLORS
  shape: str  # one of SHAPES


@dataclasses.dataclass(frozen=True)
class Scene:
  """Describes one group in a place, or two groups in a relation."""

  groups: tuple[Group, ...]  # one or two
  relation: str  # one of PLACES; of two groups, one of RELATIONS, of the first
  background: str  # one of COLORS


@dataclasses.dataclass(frozen=True)
class Placed:
  """Holds the place of an object, in pixels of the canvas."""

  group: int  # its group's index
  cx: float  # centre of its box
  cy: float
  extent: float  # width of its box


def held_out(color: str, shape: str, relation: str) -> bool:
  """Tests whether a combination, one in eight, is kept for test_unseen."""
  c = tuple(COLORS).index(color)
  r = (RELATIONS + PLACES).index(relation)
  return (c + SHAPES.index(shape) + 3 * r) % 8 == 0


def combos(scene: Scene) -> set[tuple[str, str, str]]:
  """Returns (colour, shape, relation as seen from the group) of every group."""
  relations = (scene.relation, CONVERSE.get(scene.relation))
  return {(g.color, g.shape, r) for g, r in zip(scene.groups, relations)}


def sample_scene(
  rng: np.random.Generator, split: str
) -> tuple[Scene, tuple[Placed, ...]]:
  """Draws a random scene of `split`, with a place for each of its objects.

  Raises:
    ValueError: the split is unknown.
  """
  if split not in SPLITS:
    raise ValueError(f"split is {split!r}, expected one of {SPLITS}")
  while True:
    scene = _content(rng, split == "test_unseen")
    placed = scene and _place(rng, scene)
    if placed:
      return scene, placed


def to_json(scene: Scene, placed: tuple[Placed, ...]) -> str:
  """Formats a scene and its layout as one line of JSON."""
  objects = [dataclasses.asdict(p) for p in placed]
  return json.dumps({**dataclasses.asdict(scene), "placed": objects})


def from_json(text: str | bytes) -> tuple[Scene, tuple[Placed, ...]]:
  """Parses a scene and its layout, which may come from another dataset.

  Raises:
    ValueError: the text is no scene that `to_json` could have written.
  """
  try:
    value = files.parse_json(text, "a scene")
    groups = tuple(Group(**group) for group in value["groups"])
    placed = tuple(Placed(**box) for box in value["placed"])
    scene = Scene(groups, value["relation"], value["background"])
    if _is_scene(scene):
      return scene, placed
  except (KeyError, TypeError):
    pass
  raise ValueError(
    f"a scene is {files.quote(text)}, expected one as captioned_shapes "
    "writes it"
  )


def _is_scene(scene: Scene) -> bool:
  """Tests whether all fields of a scene have allowed values."""
  options = {
    "count": (1, 2, 3), "size": SIZES, "fill": FILLS, "color": COLORS,
    "shape": SHAPES,
  }  # fmt: skip
  relations = {1: PLACES, 2: RELATIONS}.get(len(scene.groups), ())
  return (
    scene.relation in relations
    and scene.background in COLORS
    and all(
      getattr(group, key) in known
      for group in scene.groups
      for key, known in options.items()
    )
  )


def _pick(rng, options):
  return options[rng.integers(len(options))]


def _content(rng: np.random.Generator, unseen: bool) -> Scene | None:
  """Draws a scene without a layout; None if its two groups are alike."""
  if rng.random() < 0.65:
    relation, counts = _pick(rng, RELATIONS), _pick(rng, _PAIR_COUNTS)
    seen_from = (relation, CONVERSE[relation])
  else:
    relation, counts = _pick(rng, PLACES), (int(rng.integers(1, 4)),)
    seen_from = (relation,)
  groups = tuple(_group(rng, n, r, unseen) for n, r in zip(counts, seen_from))
  if len({(g.color, g.shape) for g in groups}) < len(groups):
    return None
  used = {g.color for g in groups}
  background = _pick(rng, [c for c in COLORS if c not in used])
  return Scene(groups, relation, background)


def _group(rng, count: int, relation: str, unseen: bool) -> Group:
  color, shape = _pick(rng, _LOOKS[unseen][relation])
  size, fill = _pick(rng, tuple(SIZES)), _pick(rng, FILLS)
  return Group(count, size, fill, color, shape)


_LOOKS = {  # _LOOKS[unseen][relation]: the allowed pairs (colour, shape)
  unseen: {
    r: [(c, s) for c in COLORS for s in SHAPES if held_out(c, s, r) == unseen]
    for r in RELATIONS + PLACES
  }
  for unseen in (False, True)
}


def _place(rng: np.random.Generator, scene: Scene) -> tuple[Placed, ...] | None:
  """Draws a layout by rejection sampling; None if no proposal is valid."""
  ranges = [SIZES[g.size] for g in scene.groups]
  sizes = [int(rng.integers(lo, hi + 1)) for lo, hi in ranges]
  group = np.repeat(np.arange(len(sizes)), [g.count for g in scene.groups])
  extent = np.take(sizes, group)
  if len(sizes) == 2:
    xy = _propose_pair(rng, scene.relation, sizes, group)
  elif scene.relation == "middle":
    xy = _propose_middle(rng, extent)
  else:
    xy = _propose_side(rng, scene.relation, extent)
  # Quarter pixels are exact in JSON, so a scene that is read back is identical.
  xy = np.round(4 * xy) / 4
  valid = np.flatnonzero(_valid(xy, scene.relation, group, extent))
  if not valid.size:
    return None
  return tuple(
    Placed(int(g), float(x), float(y), float(e))
    for g, (x, y), e in zip(group, xy[valid[0]], extent)
  )


def _propose_pair(rng, relation: str, sizes: list[int], group) -> np.ndarray:
  """Proposes layouts [N, n, 2] with a random line between two groups."""
  axis = 1 if relation in ("above", "below") else 0
  first = 0 if relation in ("above", "left of") else 1  # nearer to the origin
  margin, half = BORDER + RELATION_GAP / 2, np.take(sizes, group) / 2
  line = rng.uniform(
    margin + sizes[first], CANVAS - margin - sizes[1 - first], (_PROPOSALS, 1)
  )
  near = group == first
  low = np.where(near, BORDER, line + RELATION_GAP / 2) + half
  high = np.where(near, line - RELATION_GAP / 2, CANVAS - BORDER) - half
  xy = np.empty((_PROPOSALS, len(group), 2))
  xy[..., axis] = rng.uniform(low, high)
  across = rng.uniform(size=low.shape)
  xy[..., 1 - axis] = BORDER + half + across * (CANVAS - 2 * (BORDER + half))
  return xy


def _propose_middle(rng, extent: np.ndarray) -> np.ndarray:
  """Proposes layouts [N, n, 2] with centroids near the canvas's centre."""
  xy = rng.uniform(-1, 1, (_PROPOSALS, len(extent), 2)) * extent[:, None]
  target = rng.uniform(-1, 1, (_PROPOSALS, 1, 2)) * MIDDLE_LIMIT
  return CANVAS / 2 + target + xy - xy.mean(1, keepdims=True)


def _propose_side(rng, place: str, extent: np.ndarray) -> np.ndarray:
  """Proposes layouts [N, n, 2] at the top, bottom, left or right."""
  margin = BORDER + extent[:, None] / 2
  low = np.broadcast_to(margin, (len(extent), 2)).copy()
  high = CANVAS - low
  axis = 1 if place in ("top", "bottom") else 0
  if place in ("top", "left"):
    high[:, axis] = PLACE_LIMIT
  else:
    low[:, axis] = CANVAS - PLACE_LIMIT
  return rng.uniform(low, high, (_PROPOSALS, *low.shape))


def _valid(xy: np.ndarray, relation: str, group, extent) -> np.ndarray:
  """Finds the layouts [N, n, 2] that keep all distances and the relation."""
  half = extent / 2
  margin = BORDER + half[:, None]
  ok = ((xy >= margin) & (xy <= CANVAS - margin)).all((1, 2))
  i, j = np.triu_indices(len(extent), 1)
  apart = np.abs(xy[:, i] - xy[:, j]) - (half[i] + half[j])[:, None]
  ok &= (apart.max(-1) >= GAP).all(-1)
  if relation == "middle":
    return ok & (np.hypot(*(xy.mean(1) - CANVAS / 2).T) < MIDDLE_LIMIT)
  along = xy[..., 1 if relation in ("above", "below", "top", "bottom") else 0]
  if relation in ("below", "right of", "bottom", "right"):
    along = CANVAS - along
  if relation in PLACES:
    return ok & (along < PLACE_LIMIT).all(-1)
  end = (along + half)[:, group == 0].max(-1)
  start = (along - half)[:, group == 1].min(-1)
  return ok & (start - end >= RELATION_GAP)
