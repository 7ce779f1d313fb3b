"""Detection of the objects in an image of captioned_shapes.

No part is learned: colours are compared with the palette, silhouettes with four
ideal ones, and fills by the layout of the shade. Lengths are in pixels of the
256 x 256 canvas, to which an image of another size is resized first.
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

OTHER = "other"  # a silhouette that is none of the four shapes

_NAMES = tuple(COLORS)
_MAIN = np.array([COLORS[name] for name in _NAMES], np.float32)  # [K, 3]
_SHADE = np.array([shade(name) for name in _NAMES], np.float32)  # [K, 3]
_FRAME = 6  # the least distance of an object from the border
_TOLERANCE = 40.0  # half the smallest distance between two palette colours
_SMALLEST = 200  # least area of a component, a third of the smallest star
_LARGE_FROM = (SIZES["small"][1] + SIZES["large"][0]) / 2
_CORE = 80  # least area of a solid part, once its rim is removed
_LEAST_IOU = 0.6  # below it a silhouette is OTHER
_GOOD_IOU = 0.8  # below it a silhouette may be two touching objects
_LONGEST = 1.4  # aspect ratio of a box above which it is OTHER
_LEAST_SHADE = 0.015  # variance along colour..shade below which a fill is plain
_LEAST_DOWN = 0.75  # least share of vertical squared slope in stripes
_GRID = 32  # silhouettes are compared on this grid over their box
_TRIMS = (-0.08, -0.04, 0.0, 0.04, 0.08)  # shares of the box to trim in a fit
_TRIM_COST = 0.2  # in IoU, per unit of trim
_CROSS = ndimage.generate_binary_structure(2, 1)
_FULL = ndimage.generate_binary_structure(2, 2)


@dataclasses.dataclass(frozen=True)
class Found:
  """Describes an object found in an image, in pixels of the canvas."""

  color: str  # one of COLORS
  shape: str  # one of SHAPES, or OTHER
  fill: str  # one of FILLS
  size: str  # one of SIZES
  cx: float  # centre of its box
  cy: float
  extent: float  # longer edge of its box


def find_objects(image) -> tuple[str, list[Found]]:
  """Finds the background's colour and the objects, largest first.

  Args:
    image: an image [H, W, 3], uint8 or float in [-1, 1].
  """
  pixels = _canvas(image)
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


def _canvas(image) -> np.ndarray:
  """Resizes an image to the canvas: float32 [256, 256, 3] in 0..255."""
  image = np.asarray(image)
  if image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(
      f"image has shape {image.shape}, expected [height, width, 3]"
    )
  pixels = image.astype(np.float32)
  if image.dtype != np.uint8:
    pixels = (np.nan_to_num(pixels) + 1) * 127.5
  zoom = (CANVAS / image.shape[0], CANVAS / image.shape[1], 1)
  if zoom != (1, 1, 1):
    pixels = ndimage.zoom(pixels, zoom, order=1, mode="nearest", grid_mode=True)
  return np.clip(pixels, 0, 255)


def _background(pixels) -> tuple[str, np.ndarray]:
  """Finds the background: the colour most common overall and at the border.

  Returns:
    The palette colour, and the median RGB value of its pixels.
  """
  nearest = np.argmin(np.sum(_MAIN**2, -1) - 2 * pixels @ _MAIN.T, -1)
  border = np.ones(nearest.shape, bool)
  border[_FRAME:-_FRAME, _FRAME:-_FRAME] = False
  votes = np.bincount(nearest.ravel(), minlength=len(_NAMES)) / nearest.size
  votes += np.bincount(nearest[border], minlength=len(_NAMES)) / border.sum()
  k = int(np.argmax(votes))
  return _NAMES[k], np.median(pixels[nearest == k], axis=0)


def _components(mask):
  """Yields (window, mask in the window) of every large enough component."""
  labels, _ = ndimage.label(mask, _FULL)
  for i, window in enumerate(ndimage.find_objects(labels), start=1):
    component = labels[window] == i
    if component.sum() >= _SMALLEST:
      yield window, component


def _along(pixels, k) -> tuple[np.ndarray, np.ndarray]:
  """Computes pixels' distance to the line colour..shade, and place (0..1)."""
  line = _SHADE[k] - _MAIN[k]
  offset = pixels - _MAIN[k]
  t = np.clip(offset @ line / (line @ line), 0, 1)
  return np.linalg.norm(offset - t[..., None] * line, axis=-1), t


def _by_color(pixels, mask, away, background):
  """Yields (colour's index, mask) of the parts of a component by colour."""
  distances, ts = np.stack(
    [_along(pixels, k) for k in range(len(_NAMES))], axis=1
  )
  distances[_NAMES.index(background)] = np.inf
  present = _present(np.argmin(distances, axis=0), ts, mask)
  # An edge is equally far from the object's colour and from the background.
  solid = mask & (distances[present].min(axis=0) < away)
  smooth = [ndimage.uniform_filter(distances[k], 5) for k in present]
  owner = np.argmin(smooth, axis=0)
  for i, k in enumerate(present):
    yield k, solid & (owner == i)


def _present(nearest, ts, mask) -> list[int]:
  """Returns the colours that fill a solid part, or else the most voted one."""
  inner, votes, present = _core(mask, 2), [], []
  for k, t in enumerate(ts):
    mine = inner & (nearest == k)
    # Greys are shades of both black and white, so only pure colours decide.
    pure = mine & (t < 0.35)
    votes.append(pure.sum() + 0.5 * mine.sum())
    if pure.sum() >= _CORE:
      pure = ndimage.binary_opening(pure, _FULL, iterations=2)
      if pure.sum() >= _CORE:
        present.append(k)
  return present or [int(np.argmax(votes))]


def _depth(mask) -> np.ndarray:
  """Counts the steps from each pixel out of the mask, or out of the window."""
  return ndimage.distance_transform_cdt(np.pad(mask, 1), "taxicab")[1:-1, 1:-1]


def _core(mask, width):
  """Removes a mask's rim, or a thinner rim where too little would remain."""
  depth = _depth(mask)
  for rim in range(width, 0, -1):
    if (depth > rim).sum() >= _CORE:
      return depth > rim
  return mask


def _untouched(mask):
  """Yields a mask's large enough solid parts, separated where they touch."""
  mask = ndimage.binary_fill_holes(mask)
  mask = ndimage.binary_opening(mask, _CROSS)
  for window, part in _components(mask):
    for piece in _split(part):
      if piece.sum() >= _SMALLEST:
        whole = np.zeros_like(mask)
        whole[window] = piece
        yield whole


def _split(mask) -> list[np.ndarray]:
  """Cuts a mask at its neck, if it has one and fits no shape well."""
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
  """Describes an object by its mask in the window and its colour's index."""
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
  """Tests whether points are inside a shape whose box is [-1, 1] x [-1, 1]."""
  if shape == "circle":
    return x**2 + y**2 <= 1
  if shape == "triangle":
    return (np.abs(x) <= (1 + y) / 2) & (y <= 1)
  if shape == "square":
    return np.maximum(np.abs(x), np.abs(y)) <= 1
  # The star's tips are on the unit circle, from y = -1 to cos(36 deg). Each of
  # its ten edges, folded onto the first, is on a line cos(72 deg) away.
  x = x * np.sin(2 * np.pi / 5)
  y = (y * (1 + np.cos(np.pi / 5)) - (1 - np.cos(np.pi / 5))) / 2
  angle = np.arctan2(x, -y) + np.pi / 5
  fold = np.abs(angle % (2 * np.pi / 5) - np.pi / 5)
  edge = np.cos(2 * np.pi / 5)
  return np.hypot(x, y) * np.cos(2 * np.pi / 5 - fold) <= edge


@functools.cache
def _templates():
  """Builds ideal shapes whose boxes differ a little from a mask's box.

  Returns:
    shapes [T] (indices), trims [T, 4] (top, bottom, left, right, as shares of
    the mask's box) and the silhouettes' bits over that box.
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
  """Packs masks [..., grid, grid] into uint64 [..., grid * grid / 64]."""
  flat = masks.reshape(*masks.shape[:-2], -1)
  return np.packbits(flat, axis=-1).view(np.uint64)


def _fit(mask) -> tuple[str, float, list[float]]:
  """Finds the shape that overlaps a mask best, its IoU, and its box."""
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
  """Classifies a fill: t varies little (plain), vertically or in all ways."""
  # Exclude specks of a third colour. Exclude the blurred rim, which looks like
  # the shade on a similar background.
  specks = distance > np.median(distance[mask]) + _TOLERANCE
  inner = _core(mask & ~specks, 5)
  if t[inner].var() < _LEAST_SHADE:
    return "plain"
  down, across = np.gradient(ndimage.gaussian_filter(t, 1.5))
  down, across = (down[inner] ** 2).sum(), (across[inner] ** 2).sum()
  return "striped" if down > _LEAST_DOWN * (down + across) else "dotted"
