import itertools
import json

import numpy as np
import pytest

from imagen_jax.shapes import scenes

OPPOSITE = {
  "above": "below",
  "below": "above",
  "left of": "right of",
  "right of": "left of",
}


def sample(split, n=300):
  return [
    scenes.sample_scene(np.random.default_rng((7, i)), split) for i in range(n)
  ]


def seen_combos(scene):
  seen = [scene.relation, OPPOSITE.get(scene.relation)]
  return {(g.color, g.shape, seen[i]) for i, g in enumerate(scene.groups)}


def box(p):
  return (
    p.cx - p.extent / 2,
    p.cy - p.extent / 2,
    p.cx + p.extent / 2,
    p.cy + p.extent / 2,
  )


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_content_keeps_its_promises(split):
  for scene, placed in sample(split):
    groups = scene.groups
    assert 1 <= len(groups) <= 2
    assert 1 <= sum(g.count for g in groups) <= 4
    assert scene.relation in (
      scenes.PLACES if len(groups) == 1 else scenes.RELATIONS
    )
    assert scene.background not in {g.color for g in groups}
    assert len({(g.color, g.shape) for g in groups}) == len(groups)
    for i, group in enumerate(groups):
      extents = {p.extent for p in placed if p.group == i}
      low, high = scenes.SIZES[group.size]
      assert len(extents) == 1 and low <= extents.pop() <= high
      assert sum(p.group == i for p in placed) == group.count


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_objects_keep_their_distances(split):
  for _, placed in sample(split):
    boxes = [box(p) for p in placed]
    assert all(min(b) >= 6 and max(b) <= 256 - 6 for b in boxes)
    for a, b in itertools.combinations(boxes, 2):
      gap_x = max(a[0] - b[2], b[0] - a[2])
      gap_y = max(a[1] - b[3], b[1] - a[3])
      assert max(gap_x, gap_y) >= 8


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_relations_hold_for_every_pair_of_objects(split):
  for scene, placed in sample(split):
    if len(scene.groups) == 1:
      continue
    for p, q in itertools.product(placed, placed):
      if (p.group, q.group) != (0, 1):
        continue
      a, b = box(p), box(q)
      gap = {
        "above": b[1] - a[3],
        "below": a[1] - b[3],
        "left of": b[0] - a[2],
        "right of": a[0] - b[2],
      }[scene.relation]
      assert gap >= 12


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_places_hold(split):
  for scene, placed in sample(split):
    if len(scene.groups) == 2:
      continue
    x = np.array([p.cx for p in placed]) / 256
    y = np.array([p.cy for p in placed]) / 256
    assert {
      "top": (y < 0.42).all(),
      "bottom": (y > 0.58).all(),
      "left": (x < 0.42).all(),
      "right": (x > 0.58).all(),
      "middle": np.hypot(x.mean() - 0.5, y.mean() - 0.5) < 0.12,
    }[scene.relation]


def test_unseen_combinations_never_occur_in_train_or_test():
  combos = {
    split: set().union(*(seen_combos(s) for s, _ in sample(split, 600)))
    for split in scenes.SPLITS
  }
  assert combos["test_unseen"].isdisjoint(combos["train"] | combos["test"])
  # Their parts do: only the combination is new.
  for part in range(3):
    assert {c[part] for c in combos["test_unseen"]} == {
      c[part] for c in combos["train"]
    }


def test_every_allowed_combination_occurs():
  seen = set().union(*(seen_combos(s) for s, _ in sample("train", 3000)))
  assert len(seen) == 8 * 4 * 9 * 7 / 8


def test_one_in_eight_is_held_out_for_each_shape_and_relation():
  for shape, relation in itertools.product(
    scenes.SHAPES, scenes.RELATIONS + scenes.PLACES
  ):
    held = [scenes.held_out(c, shape, relation) for c in scenes.COLORS]
    assert sum(held) == 1
  for color in scenes.COLORS:
    held = [
      scenes.held_out(color, s, r)
      for s in scenes.SHAPES
      for r in scenes.RELATIONS + scenes.PLACES
    ]
    assert 4 <= sum(held) <= 5


def test_combos_agree_with_the_definition():
  assert all(scenes.combos(s) == seen_combos(s) for s, _ in sample("test", 50))


def test_json_gives_the_scene_back():
  for scene, placed in sample("train", 50):
    text = scenes.to_json(scene, placed)
    assert scenes.from_json(text) == (scene, placed)
    assert scenes.from_json(text.encode()) == (scene, placed)


BAD_SCENES = {
  "nested": "[" * 100_000,
  "no JSON": "{",
  "a list": "[]",
  "a number": "1",
  "no text": np.uint8(1),
  "no groups": '{"groups": [], "placed": [], "relation": "top", "backgroun',
  "another key": {"groups": [{"colour": "red"}]},
  "no list": {"groups": 3},
  "unknown colour": {"background": "mauve"},
  "unhashable": {"background": []},
  "place of two": {"relation": "top"},
  "long": {"relation": "\x1b" * 10**6},
}


@pytest.mark.parametrize("how", BAD_SCENES)
def test_no_scene(how):
  bad = BAD_SCENES[how]
  if isinstance(bad, dict):
    group = {"count": 1, "size": "small", "fill": "plain", "color": "red"}
    groups = [group | {"shape": "star"}] * 2
    good = {"groups": groups, "placed": [], "relation": "above"}
    good["background"] = "black"
    assert scenes.from_json(json.dumps(good))
    bad = json.dumps(good | bad)
  with pytest.raises(ValueError, match="a scene is ") as caught:
    scenes.from_json(bad)
  assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


def test_unknown_split():
  with pytest.raises(ValueError, match="split is 'val', expected one of"):
    scenes.sample_scene(np.random.default_rng(0), "val")
