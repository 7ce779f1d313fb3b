"""Finds the objects of a captioned_shapes picture from its pixels alone.

Nothing here is learned: colours are compared with the palette, silhouettes
with the four ideal ones, fills by the layout of the shade. Every length is in
pixels of the 256 canvas, to which a picture of another size is resized first.
"""

import dataclasses
import functools
import itertools

import numpy as np
from scipy import ndimage

from imagen_jax.shapes.drawing import shade
from imagen_jax.shapes.scenes import (
  CANVAS,
  COLORS,
  SHAPES,
  SIZES,
)

OTHER = "other"  # a silhouette that is none of the four

_NAMES = tuple(COLORS)
_MAIN = np.array([COLORS[name] for name in _NAMES], np.float32)  # [K, 3]
_SHADE = np.array([shade(name) for name in _NAMES], np.float32)  # [K, 3]
_FRAME = 6  # no object comes nearer to the border
_TOLERANCE = 40.0  # half the smallest distance between two palette colours
_SMALLEST = 200  # area of a component that counts, a third of the least star
_LARGE_FROM = (SIZES["small"][1] + SIZES["large"][0]) / 2
_CORE = 80  # area of a solid part: what must stay when a rim is taken off
_LEAST_IOU = 0.6  # below it a silhouette is none of the four
_GOOD_IOU = 0.8  # below it a silhouette may be two that touch
_LONGEST = 1.4  # longer side / shorter side of a box above which it is OTHER
_LEAST_SHADE = 0.015  # variance along colour..shade below which it is plain
_LEAST_DOWN = 0.75  # share of the squared slope that is vertical in stripes
_GRID = 32  # silhouettes are compared on this grid over their box
_TRIMS = (-0.08, -0.04, 0.0, 0.04, 0.08)  # of the box: how a fit may miss it
_TRIM_COST = 0.2  # in IoU, per unit of trim
_CROSS = ndimage.generate_binary_structure(2, 1)
_FULL = ndimage.generate_binary_structure(2, 2)


@dataclasses.dataclass(frozen=True)
class Found:
  """One object: what it looks like, its box's centre and longer side."""

  color: str
  shape: str  # one of SHAPES, or OTHER
  fill: str
  size: str
  cx: float
  cy: float
  extent: float


def find_objects(picture) -> tuple[str, list[Found]]:
  """The background's colour and the objects of [H, W, 3], largest first."""
  pixels = _canvas(picture)
  background, value = _background(pixels)
  away = np.linalg.norm(pixels - value, axis=-1)
  found = []
  far = ndimage.binary_closing(away > _TOLERANCE, _CROSS)
  for window, mask in _components(far):
    inside = pixels[window]
    for k, piece in _by_color(inside, mask, away[window], background):
      for part in _untouched(piece):
        found.append(_describe(inside, part, k, window))
  return background, sorted(found, key=lambda f: -f.extent)


def _canvas(picture) -> np.ndarray:
  """uint8 or float in [-1, 1], [H, W, 3] -> float32 [256, 256, 3], 0..255."""
  picture = np.asarray(picture)
  if picture.ndim != 3 or picture.shape[-1] != 3:
    raise ValueError(
      f"A picture must have shape [height, width, 3], not {picture.shape}."
    )
  pixels = picture.astype(np.float32)
  if picture.dtype != np.uint8:
    pixels = (np.nan_to_num(pixels) + 1) * 127.5
  zoom = (CANVAS / picture.shape[0], CANVAS / picture.shape[1], 1)
  if zoom != (1, 1, 1):
    pixels = ndimage.zoom(pixels, zoom, order=1, mode="nearest", grid_mode=True)
  return np.clip(pixels, 0, 255)


def _background(pixels) -> tuple[str, np.ndarray]:
  """The palette colour most common in all and at the border, and its value."""
  nearest = np.argmin(np.sum(_MAIN**2, -1) - 2 * pixels @ _MAIN.T, -1)
  border = np.ones(nearest.shape, bool)
  border[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
  votes = np.bincount(nearest.ravel(), minlength=len(_NAMES)) / nearest.size
  votes += np.bincount(nearest[border], minlength=len(_NAMES)) / border.sum()
  k = int(np.argmax(votes))
  return _NAMES[k], np.median(pixels[nearest == k], axis=0)


def _components(mask):
  """(window, mask in the window) of every component that is big enough."""
  labels, _ = ndimage.label(mask, _FULL)
  for i, window in enumerate(ndimage.find_objects(labels), start=1):
    component = labels[window] == i
    if component.sum() >= _SMALLEST:
      yield window, component


def _along(pixels, k) -> tuple[np.ndarray, np.ndarray]:
  """Distance of pixels to the line colour..shade, and where on it (0..1)."""
  line = _SHADE[k] - _MAIN[k]
  offset = pixels - _MAIN[k]
  t = np.clip(offset @ line / (line @ line), 0, 1)
  return np.linalg.norm(offset - t[..., None] * line, axis=-1), t


def _by_color(pixels, mask, away, background):
  """(colour, mask) of the parts of one component, by colour and its shade."""
  distances, ts = np.stack(
    [_along(pixels, k) for k in range(len(_NAMES))], axis=1
  )
  distances[_NAMES.index(background)] = np.inf
  present = _present(np.argmin(distances, axis=0), ts, mask)
  # An edge lies where the object's colour and the background are equally far.
  solid = mask & (distances[present].min(axis=0) < away)
  smooth = [ndimage.uniform_filter(distances[k], 5) for k in present]
  owner = np.argmin(smooth, axis=0)
  for i, k in enumerate(present):
    yield k, solid & (owner == i)


def _present(nearest, ts, mask) -> list[int]:
  """The colours that fill a solid part of a component, or the one voted for."""
  inner, votes, present = _core(mask, 2), [], []
  for k, t in enumerate(ts):
    mine = inner & (nearest == k)
    # Greys are a shade of black and of white: the pure colour decides.
    pure = mine & (t < 0.35)
    votes.append(pure.sum() + 0.5 * mine.sum())
    if pure.sum() >= _CORE:
      pure = ndimage.binary_opening(pure, _FULL, iterations=2)
      if pure.sum() >= _CORE:
        present.append(k)
  return present or [int(np.argmax(votes))]


def _depth(mask) -> np.ndarray:
  """Steps to the nearest pixel outside the mask, which the window bounds."""
  return ndimage.distance_transform_cdt(np.pad(mask, 1), "taxicab")[1:-1, 1:-1]


def _core(mask, width):
  """The mask without its rim, a thinner one where too little would stay."""
  depth = _depth(mask)
  for rim in range(width, 0, -1):
    if (depth > rim).sum() >= _CORE:
      return depth > rim
  return mask


def _untouched(mask):
  """The solid parts of a mask that are big enough, touching ones apart."""
  mask = ndimage.binary_fill_holes(mask)
  mask = ndimage.binary_opening(mask, _CROSS)
  for window, part in _components(mask):
    for piece in _split(part):
      if piece.sum() >= _SMALLEST:
        whole = np.zeros_like(mask)
        whole[window] = piece
        yield whole


def _split(mask) -> list[np.ndarray]:
  """Cuts a mask that fits no shape well at its neck, if it has one."""
  if _fit(mask)[1] >= _GOOD_IOU:
    return [mask]
  depth = _depth(mask)
  for width in range(3, int(depth.max()), 3):
    cores, n = ndimage.label(depth > width, _FULL)
    areas = np.bincount(cores.ravel(), minlength=n + 1)[1:]
    solid = np.flatnonzero(areas >= _CORE) + 1
    if len(solid) > 1:
      _, near = ndimage.distance_transform_edt(
        ~np.isin(cores, solid), return_indices=True
      )
      return [mask & (cores[tuple(near)] == i) for i in solid]
  return [mask]


def _describe(pixels, mask, k, window) -> Found:
  """Reads one object off its mask in the window and its colour's index."""
  shape, _, (top, bottom, left, right) = _fit(mask)
  extent = float(max(bottom - top, right - left))
  return Found(
    color=_NAMES[k],
    shape=shape,
    fill=_fill(*_along(pixels, k), mask),
    size="large" if extent > _LARGE_FROM else "small",
    cx=float(window[1].start + (left + right) / 2),
    cy=float(window[0].start + (top + bottom) / 2),
    extent=extent,
  )


def _silhouette(shape: str, y, x) -> np.ndarray:
  """Whether points are inside a shape whose box is [-1, 1] x [-1, 1]."""
  if shape == "circle":
    return x**2 + y**2 <= 1
  if shape == "triangle":
    return (np.abs(x) <= (1 + y) / 2) & (y <= 1)
  if shape == "square":
    return np.maximum(np.abs(x), np.abs(y)) <= 1
  # The star's points are on the unit circle, from y = -1 to cos(36 deg); each
  # of its ten edges, folded to the first, is on a line cos(72 deg) away.
  x = x * np.sin(2 * np.pi / 5)
  y = (y * (1 + np.cos(np.pi / 5)) - (1 - np.cos(np.pi / 5))) / 2
  angle = np.arctan2(x, -y) + np.pi / 5
  fold = np.abs(angle % (2 * np.pi / 5) - np.pi / 5)
  edge = np.cos(2 * np.pi / 5)
  return np.hypot(x, y) * np.cos(2 * np.pi / 5 - fold) <= edge


@functools.cache
def _templates():
  """Ideal shapes whose box may miss that of a mask a little on each side.

  Returns shapes [T] (indices), trims [T, 4] (top, bottom, left, right, as
  shares of the mask's box) and the silhouettes' bits over that box.
  """
  centres = (np.arange(_GRID) + 0.5) / _GRID
  trims = np.array(list(itertools.product(_TRIMS, repeat=4)))
  top, bottom, left, right = trims.T[:, :, None, None]
  y = 2 * (centres[:, None] - top) / (1 - top - bottom) - 1
  x = 2 * (centres[None, :] - left) / (1 - left - right) - 1
  y, x = np.broadcast_arrays(y, x)
  inside = np.concatenate([_silhouette(shape, y, x) for shape in SHAPES])
  shapes = np.repeat(np.arange(len(SHAPES)), len(trims))
  return shapes, np.tile(trims, (len(SHAPES), 1)), _bits(inside)


def _bits(masks) -> np.ndarray:
  """Masks [..., grid, grid] as words of 64 pixels, uint64 [..., words]."""
  flat = masks.reshape(*masks.shape[:-2], -1)
  return np.packbits(flat, axis=-1).view(np.uint64)


def _fit(mask) -> tuple[str, float, list[float]]:
  """The shape that overlaps a mask best, its IoU, and the box it then has."""
  rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
  top, left = rows[0], columns[0]
  height, width = rows[-1] + 1 - top, columns[-1] + 1 - left
  share = (np.arange(_GRID) + 0.5) / _GRID
  ys, xs = (
    (top + share * height).astype(int),
    (left + share * width).astype(int),
  )
  sampled = _bits(mask[np.ix_(ys, xs)])
  shapes, trims, ideal = _templates()
  both = np.bitwise_count(ideal & sampled).sum(-1)
  iou = both / np.bitwise_count(ideal | sampled).sum(-1)
  iou *= max(height, width) <= _LONGEST * min(height, width)
  best = int(np.argmax(iou - _TRIM_COST * np.abs(trims).sum(1)))
  inward = trims[best] * (1, -1, 1, -1) * (height, height, width, width)
  box = (top, top + height, left, left + width) + inward
  shape = SHAPES[shapes[best]] if iou[best] >= _LEAST_IOU else OTHER
  return shape, float(iou[best]), box.tolist()


def _fill(distance, t, mask) -> str:
  """plain: t hardly varies; striped: it does, up and down; dotted: all ways."""
  # Neither a speck of a third colour is a pattern, nor the blurred rim on a
  # background like the shade: keep off both.
  specks = distance > np.median(distance[mask]) + _TOLERANCE
  inner = _core(mask & ~specks, 5)
  if t[inner].var() < _LEAST_SHADE:
    return "plain"
  down, across = np.gradient(ndimage.gaussian_filter(t, 1.5))
  down, across = (down[inner] ** 2).sum(), (across[inner] ** 2).sum()
  return "striped" if down > _LEAST_DOWN * (down + across) else "dotted"
