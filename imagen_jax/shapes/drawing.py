"""Drawing of scenes, antialiased by signed distances, in plain numpy."""

import numpy as np

from imagen_jax.shapes import scenes

PERIOD = 16  # pixels between stripes, or between dots in a row
DOT_RADIUS = 4
_LUMINANCE = (0.299, 0.587, 0.114)


def draw(scene: scenes.Scene, placed: tuple[scenes.Placed, ...]) -> np.ndarray:
  """Draws a scene as an image, uint8 [256, 256, 3]."""
  shape = (scenes.CANVAS, scenes.CANVAS, 3)
  image = np.empty(shape, np.float32)
  image[:] = scenes.COLORS[scene.background]
  for p in placed:
    _draw_object(image, scene.groups[p.group], p)
  return np.round(image).astype(np.uint8)


def shade(color: str) -> tuple[float, float, float]:
  """Mixes a fill's second colour: half white if dark, else half black."""
  rgb = np.array(scenes.COLORS[color], np.float32)
  other = 255 if rgb @ _LUMINANCE < 0.5 * 255 else 0
  return tuple(((rgb + other) / 2).tolist())


def _draw_object(image: np.ndarray, group: scenes.Group, p: scenes.Placed):
  """Paints an object onto the part of `image` that its box covers."""
  reach = p.extent / 2 + 1
  rows, cols = (
    slice(max(int(c - reach), 0), int(c + reach) + 1) for c in (p.cy, p.cx)
  )
  window = image[rows, cols]
  height, width, _ = window.shape
  y = np.arange(height, dtype=np.float32)[:, None] + (rows.start + 0.5 - p.cy)
  x = np.arange(width, dtype=np.float32) + (cols.start + 0.5 - p.cx)
  ink = np.array(scenes.COLORS[group.color], np.float32)
  pattern = _coverage(_fill_distance(group.fill, x, y))[..., None]
  paint = ink + pattern * (np.float32(shade(group.color)) - ink)
  inside = _coverage(_distance(group.shape, x, y, p.extent / 2))[..., None]
  window += inside * (paint - window)


def _coverage(distance: np.ndarray) -> np.ndarray:
  """Returns the share of a pixel inside an edge at a distance (inside < 0)."""
  return np.clip(0.5 - distance, 0, 1)


def _distance(shape: str, x, y, half: float) -> np.ndarray:
  """Computes the signed distance to a shape whose box has half width `half`."""
  if shape == "circle":
    return np.hypot(x, y) - half
  if shape == "square":
    return np.maximum(np.abs(x), np.abs(y)) - half
  if shape == "triangle":
    side = (2 * np.abs(x) - (y + half)) / np.sqrt(np.float32(5))
    return np.maximum(side, y - half)
  # A point is in a star if it is beyond at most one line of a pentagram's five.
  radius = half / np.sin(2 * np.pi / 5)  # as wide as the box, points up
  y = y + radius * (np.cos(np.pi / 5) - 1) / 2  # the box's centre is at 0
  angles = -np.pi / 2 + 2 * np.pi / 5 * np.arange(5)
  lines = [
    np.float32(np.cos(a)) * x + np.float32(np.sin(a)) * y for a in angles
  ]
  return np.partition(lines, 3, 0)[3] - radius * np.cos(2 * np.pi / 5)


def _fill_distance(fill: str, x, y) -> np.ndarray:
  """Computes the signed distance to a fill's shade, which avoids the centre."""
  if fill == "plain":
    return np.ones((1, 1), np.float32)
  if fill == "striped":
    to_stripe = np.abs(y % PERIOD - PERIOD / 2)
    return to_stripe - PERIOD / 4
  rows = _to_lattice(y), _to_lattice(y + PERIOD / 2)
  cols = _to_lattice(x + PERIOD / 2), _to_lattice(x)
  return np.minimum(*map(np.hypot, rows, cols)) - DOT_RADIUS


def _to_lattice(u: np.ndarray) -> np.ndarray:
  """Computes the distance to the nearest multiple of PERIOD."""
  return np.abs((u + PERIOD / 2) % PERIOD - PERIOD / 2)
