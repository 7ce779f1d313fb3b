"""The judge against drawn scenes, whose truth is known."""

import collections
import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from imagen_jax.shapes.drawing import draw
from imagen_jax.shapes.judge import KINDS, check, judge, share, tally
from imagen_jax.shapes.objects import OTHER, find_objects
from imagen_jax.shapes.scenes import (
  COLORS,
  FILLS,
  SHAPES,
  Group,
  Placed,
  Scene,
  sample_scene,
)

SEEN = 300  # scenes judged as drawn
DEGRADED = 50  # scenes judged after some harm


def sample(seed: int, n: int):
  rng = np.random.default_rng(seed)
  splits = ("test", "test_unseen")
  return [sample_scene(rng, splits[i % 2]) for i in range(n)]


def degrade(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Through 64x64 and back, then blurred a little and noisy."""
  small = Image.fromarray(picture).resize((64, 64), Image.Resampling.BOX)
  large = np.asarray(small.resize((256, 256), Image.Resampling.BICUBIC))
  soft = ndimage.gaussian_filter(large.astype(np.float32), (1, 1, 0))
  noisy = soft + rng.normal(0, 6, soft.shape)
  return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def failing(claims) -> set:
  return {(c.kind, c.group) for c in claims if not c.holds}


def shares(claims_of_scenes) -> dict[str, float]:
  return share(sum(map(tally, claims_of_scenes), collections.Counter()))


@pytest.fixture(scope="module")
def drawn():
  """(scene, background found, objects found) of many drawn scenes."""
  scenes = sample(0, SEEN)
  return [(s, *find_objects(draw(s, placed))) for s, placed in scenes]


def test_claims_of_the_scene_hold(drawn):
  held = shares(check(found, objects, s) for s, found, objects in drawn)
  assert set(held) == {*KINDS, "all"}
  assert min(held.values()) >= 0.99


def test_positions_and_extents_are_found():
  for scene, placed in sample(1, 20):
    _, found = find_objects(draw(scene, placed))
    assert len(found) == len(placed)
    for p in placed:
      f = min(found, key=lambda f: np.hypot(f.cx - p.cx, f.cy - p.cy))
      np.testing.assert_allclose((f.cx, f.cy), (p.cx, p.cy), atol=3)
      np.testing.assert_allclose(f.extent, p.extent, atol=8)


def test_claims_of_the_scene_hold_in_harmed_pictures():
  rng = np.random.default_rng(2)
  held = shares(
    judge(degrade(draw(s, placed), rng), s) for s, placed in sample(3, DEGRADED)
  )
  assert held["all"] >= 0.97
  assert min(held.values()) >= 0.95


def test_claims_of_another_scene_mostly_fail(drawn):
  others = [s for s, _, _ in drawn[1:]] + [drawn[0][0]]
  held = shares(
    check(found, objects, other)
    for other, (_, found, objects) in zip(others, drawn)
  )
  assert held["all"] < 0.25
  assert max(held.values()) < 0.5


def unused(options, *used):
  return next(o for o in options if o not in used)


def repaint(scene: Scene, **change) -> Scene:
  first = dataclasses.replace(scene.groups[0], **change)
  return dataclasses.replace(scene, groups=(first, *scene.groups[1:]))


def faulty(kind: str, scene: Scene, placed):
  """What to draw so that only `kind` is wrong; None where that cannot be."""
  groups = scene.groups
  colors = {g.color for g in groups} | {scene.background}
  two, middle = len(groups) == 2, scene.relation == "middle"
  if kind == "background":
    other = unused(COLORS, *colors)
    return dataclasses.replace(scene, background=other), placed
  if kind == "count":
    # In the middle the objects left may no longer be: two claims fail.
    return (scene, placed[1:]) if groups[0].count > 1 and not middle else None
  if kind == "color":
    return repaint(scene, color=unused(COLORS, *colors)), placed
  if kind == "shape":
    other = unused(SHAPES, *(g.shape for g in groups))
    return repaint(scene, shape=other), placed
  if kind == "fill":
    return repaint(scene, fill=unused(FILLS, groups[0].fill)), placed
  if kind == "size":
    small = [
      dataclasses.replace(p, extent=48.0) if p.group == 0 else p for p in placed
    ]
    return (scene, small) if groups[0].size == "large" else None
  turned = [
    dataclasses.replace(p, cx=256 - p.cx, cy=256 - p.cy) for p in placed
  ]
  return (scene, turned) if two == (kind == "relation") and not middle else None


@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_falsifies_one_claim(kind):
  whole = kind in ("background", "relation", "place")
  faults = [(s, faulty(kind, s, placed)) for s, placed in sample(4, 40)]
  faults = [(s, fault) for s, fault in faults if fault][:10]
  assert len(faults) == 10
  for scene, fault in faults:
    expected = {(kind, None if whole else 0)}
    assert failing(judge(draw(*fault), scene)) == expected


PAIR = Scene(
  groups=(
    Group(1, "small", "striped", "yellow", "circle"),
    Group(1, "large", "plain", "orange", "star"),
  ),
  relation="left of",
  background="blue",
)
APART = (Placed(0, 60, 128, 50), Placed(1, 180, 128, 90))


def test_an_extra_object_spoils_counts():
  background, found = find_objects(draw(PAIR, APART))
  circle = next(f for f in found if f.shape == "circle")
  stranger = dataclasses.replace(circle, color="red", cy=40.0)
  claims = check(background, [*found, stranger], PAIR)
  assert failing(claims) == {("count", 0), ("count", 1)}
  twin = dataclasses.replace(circle, cy=40.0)
  assert failing(check(background, [*found, twin], PAIR)) == {("count", 0)}


def test_nothing_holds_in_an_empty_picture_but_its_background():
  claims = judge(np.full((256, 256, 3), COLORS["blue"], np.uint8), PAIR)
  assert {(c.kind, c.group) for c in claims if c.holds} == {
    ("background", None)
  }


def test_any_size_and_floats_are_judged_alike():
  picture = Image.fromarray(draw(PAIR, APART))
  small = np.asarray(picture.resize((64, 64), Image.Resampling.BOX))
  assert not failing(judge(small, PAIR))
  assert not failing(judge(small.astype(np.float32) / 127.5 - 1, PAIR))


def test_specks_are_ignored():
  picture = draw(PAIR, APART)
  picture[20:28, 30:38] = COLORS["white"]
  picture[125:131, 177:183] = COLORS["green"]
  assert not failing(judge(picture, PAIR))


@pytest.mark.parametrize("color", ["yellow", "orange"])
def test_touching_objects_are_told_apart(color):
  square = dataclasses.replace(PAIR.groups[1], shape="square")
  circle = dataclasses.replace(PAIR.groups[0], color=color)
  scene = dataclasses.replace(PAIR, groups=(circle, square))
  picture = draw(scene, (Placed(0, 86, 128, 50), Placed(1, 155, 128, 90)))
  assert not failing(judge(picture, scene))


def test_a_silhouette_of_no_shape_is_other():
  picture = np.full((256, 256, 3), COLORS["white"], np.uint8)
  picture[100:150, 60:200] = COLORS["red"]
  _, (bar,) = find_objects(picture)
  assert (bar.color, bar.shape, bar.fill) == ("red", OTHER, "plain")


def test_tallies_add_up():
  claims = judge(draw(PAIR, APART), PAIR)
  other = dataclasses.replace(PAIR, background="red")
  counts = tally(claims) + tally(judge(draw(PAIR, APART), other))
  assert counts["background", True] == counts["background", False] == 1
  assert share(counts) == {
    **dict.fromkeys(("count", "color", "shape", "size", "fill"), 1.0),
    "background": 0.5,
    "relation": 1.0,
    "all": 23 / 24,
  }


def test_a_picture_without_three_channels_is_refused():
  with pytest.raises(ValueError, match=r"image has shape \(8, 8\), expected"):
    find_objects(np.zeros((8, 8)))
