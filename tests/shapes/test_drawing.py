import numpy as np
import pytest

from imagen_jax.shapes import drawing, scenes


def picture(shape, fill="plain", color="red", background="white", extent=90):
  group = scenes.Group(1, "large", fill, color, shape)
  scene = scenes.Scene((group,), "middle", background)
  placed = (scenes.Placed(0, 120.25, 131.5, extent),)
  return drawing.draw(scene, placed)


def coverage(image, color="red", background="white"):
  """How much of each pixel is not background, by its distance in colour."""
  ground = np.array(scenes.COLORS[background], float)
  ink = np.array(scenes.COLORS[color]) - ground
  return ((image - ground) @ ink) / (ink @ ink)


def star_area(width):
  """The shoelace formula on the ten corners of a pentagram."""
  outer = width / 2 / np.cos(np.pi / 10)
  inner = outer * np.cos(2 * np.pi / 5) / np.cos(np.pi / 5)
  angle = np.pi / 5 * np.arange(10)
  radius = np.where(np.arange(10) % 2, inner, outer)
  x, y = radius * np.sin(angle), radius * np.cos(angle)
  return abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2


@pytest.mark.parametrize("extent", [44, 53, 80, 92])
@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_area_and_box_follow_geometry(shape, extent):
  area = {
    "circle": np.pi * extent**2 / 4,
    "square": extent**2,
    "triangle": extent**2 / 2,
    "star": star_area(extent),
  }[shape]
  inside = coverage(picture(shape, extent=extent))
  np.testing.assert_allclose(inside.sum(), area, rtol=0.02)
  rows, cols = (np.flatnonzero(inside.max(a) > 0.05) for a in (1, 0))
  height = extent * 0.951 if shape == "star" else extent
  assert abs(np.ptp(cols) + 1 - extent) <= 2
  assert abs(np.ptp(rows) + 1 - height) <= 2
  assert abs(rows.mean() + 0.5 - 131.5) <= 1
  assert abs(cols.mean() + 0.5 - 120.25) <= 1


@pytest.mark.parametrize("shape", ["triangle", "star"])
def test_points_up(shape):
  inside = coverage(picture(shape)) > 0.5
  rows = np.flatnonzero(inside.any(1))
  assert inside[rows[2]].sum() <= 6
  # ... over the centre, with the base (or two feet) at the bottom
  assert abs(np.flatnonzero(inside[rows[2]]).mean() + 0.5 - 120.25) <= 1
  assert np.ptp(np.flatnonzero(inside[rows[-2]])) > 40


@pytest.mark.parametrize("color", scenes.COLORS)
def test_colors_are_exact(color):
  background = "white" if color != "white" else "black"
  for shape in scenes.SHAPES:
    image = picture(shape, color=color, background=background)
    assert image.dtype == np.uint8 and image.shape == (256, 256, 3)
    assert tuple(image[131, 120]) == scenes.COLORS[color]
    for corner in image[[0, 0, -1, -1], [0, -1, 0, -1]]:
      assert tuple(corner) == scenes.COLORS[background]


def test_edges_are_antialiased():
  inside = coverage(picture("circle"))
  assert ((inside > 0.1) & (inside < 0.9)).sum() > 100


def is_shade(image, color="red"):
  return (np.abs(image - np.array(drawing.shade(color))) < 2).all(-1)


def test_stripes_are_horizontal_and_half_and_half():
  image = picture("square", "striped")
  shaded = is_shade(image)[:, 90:150]
  full_rows = shaded.all(1)
  assert (shaded.any(1) == full_rows).all()
  runs = np.flatnonzero(np.diff(full_rows.astype(int)) == 1)
  assert len(runs) in (5, 6) and (np.abs(np.diff(runs) - 16) <= 1).all()
  assert 0.4 < shaded[90:170].mean() < 0.55


def test_dots_have_their_radius_and_lattice():
  shaded = is_shade(picture("square", "dotted"))[100:164, 90:154]
  # two dots of radius 4 for every 16 x 16 pixels
  assert abs(shaded.mean() - 2 * np.pi * 16 / 256) < 0.09
  np.testing.assert_array_equal(shaded[16:], shaded[:-16])
  np.testing.assert_array_equal(shaded[:, 16:], shaded[:, :-16])
  np.testing.assert_array_equal(shaded[8:, 8:], shaded[:-8, :-8])


@pytest.mark.parametrize("fill", ["striped", "dotted"])
@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_keyss_keep_the_silhouette_and_the_centre(shape, fill):
  plain, filled = picture(shape), picture(shape, fill)
  assert tuple(filled[131, 120]) == scenes.COLORS["red"]
  outside = coverage(plain) < 1e-6
  np.testing.assert_array_equal(filled[outside], plain[outside])
  share = is_shade(filled).sum() / coverage(plain).sum()
  assert 0.15 < share < 0.6


def test_shades_are_half_way_to_the_other_end():
  assert drawing.shade("black") == (140, 140, 140)
  assert drawing.shade("white") == (122.5, 122.5, 122.5)
  assert drawing.shade("red") == (237.5, 147.5, 147.5)
  assert drawing.shade("yellow") == (122.5, 107.5, 25)


def test_every_object_is_drawn():
  rng = np.random.default_rng(3)
  for _ in range(20):
    scene, placed = scenes.sample_scene(rng, "train")
    image = drawing.draw(scene, placed)
    for p in placed:
      color = scenes.COLORS[scene.groups[p.group].color]
      assert tuple(image[int(p.cy), int(p.cx)]) == color
