import re

import numpy as np
import pytest

from imagen_jax.shapes import captions, scenes

COUNT = {
  "a": 1, "an": 1, "one": 1, "a single": 1,
  "two": 2, "2": 2, "a pair of": 2,
  "three": 3, "3": 3,
}  # fmt: skip
SIZE = {"small": "small", "little": "small", "large": "large", "big": "large"}
RELATION = {
  "above": "above", "over": "above",
  "below": "below", "under": "below",
  "left of": "left of", "right of": "right of",
}  # fmt: skip
OPPOSITE = {
  "above": "below", "below": "above",
  "left of": "right of", "right of": "left of",
}  # fmt: skip
PLACE = {
  "at the top": "top", "in the upper part": "top",
  "at the bottom": "bottom", "in the lower part": "bottom",
  "on the left": "left", "on the right": "right",
  "in the middle": "middle", "in the center": "middle",
}  # fmt: skip
COLOR = "|".join(scenes.COLORS)
PHRASE = re.compile(
  r"\b(?P<count>a single|a pair of|an|a|one|two|three|2|3) "
  r"(?:(?P<size>small|little|large|big) )?"
  r"(?:(?P<fill>plain|solid|striped|dotted) )?"
  rf"(?P<color>{COLOR}) (?P<shape>circle|square|triangle|star)(?P<plural>s?)"
  r"(?: with (?P<after>stripes|dots))?"
)


def parse(text):
  """Reads a caption without knowing how it was written: a scene's fields."""
  groups = []
  for m in PHRASE.finditer(text):
    fill = m["fill"] or {"stripes": "striped", "dots": "dotted"}.get(m["after"])
    fill = "plain" if fill == "solid" else fill
    count = COUNT[m["count"]]
    assert bool(m["plural"]) == (count > 1)
    groups.append((count, SIZE.get(m["size"]), fill, m["color"], m["shape"]))
  rest = PHRASE.sub("#", text)
  background = re.search(rf"({COLOR}) background|background is ({COLOR})", rest)
  background = background and (background[1] or background[2])
  if len(groups) == 1:
    places = {p for words, p in PLACE.items() if words in rest}
    assert len(places) <= 1
    return groups, places.pop() if places else None, background
  (match,) = re.finditer("|".join(RELATION), rest)
  relation = RELATION[match[0]]
  # "above B there is A" puts the relation before both, and B before A.
  if match.start() < rest.index("#"):
    groups.reverse()
  return groups, relation, background


def truths(scene):
  """The two ways to describe a scene."""
  groups = [(g.count, g.size, g.fill, g.color, g.shape) for g in scene.groups]
  yield groups, scene.relation, scene.background
  if len(groups) == 2:
    yield groups[::-1], OPPOSITE[scene.relation], scene.background


def sample(n, leave_out):
  rng = np.random.default_rng(5)
  for _ in range(n):
    scene, _ = scenes.sample_scene(rng, "train")
    yield scene, captions.caption(scene, rng, leave_out)


def test_everything_is_stated():
  for scene, text in sample(500, 0.0):
    assert parse(text) in list(truths(scene)), text


def agrees(told, truth):
  """Whether `told` is the truth but for what it leaves unsaid (None)."""
  if isinstance(truth, list | tuple):
    return len(told) == len(truth) and all(map(agrees, told, truth))
  return told is None or told == truth


def test_nothing_false_is_stated():
  for scene, text in sample(500, 0.3):
    told = parse(text)
    assert any(agrees(told, truth) for truth in truths(scene)), text
    for count, size, fill, color, shape in told[0]:
      assert count and color and shape
      # Sizes are named for all groups or for none, and so are fills.
      assert (size is None) == (told[0][0][1] is None), text
      assert (fill is None) == (told[0][0][2] is None), text
    assert told[1] or len(scene.groups) == 1  # two groups: always related


def test_how_much_is_left_out():
  told = [parse(text) for _, text in sample(600, 0.3)]
  alone = [relation for groups, relation, _ in told if len(groups) == 1]
  said = {
    "sizes": [groups[0][1] for groups, _, _ in told],
    "fills": [groups[0][2] for groups, _, _ in told],
    "backgrounds": [background for _, _, background in told],
    "places": alone,
  }
  for name, values in said.items():
    share = np.mean([v is not None for v in values])
    assert 0.6 < share < 0.8, name


def test_everything_may_be_left_out():
  for scene, text in sample(50, 1.0):
    groups, relation, background = parse(text)
    assert background is None
    assert all(g[1] is None and g[2] is None for g in groups)
    assert (relation is None) == (len(scene.groups) == 1)


@pytest.mark.parametrize("leave_out", [0.0, 0.3])
def test_captions_are_short_and_lower_case(leave_out):
  for _, text in sample(300, leave_out):
    assert text == text.lower()
    assert len(re.findall(r"\w+|[^\w\s]", text)) <= 28


def test_wording_varies():
  scene, _ = scenes.sample_scene(np.random.default_rng(1), "train")
  rng = np.random.default_rng(2)
  told = [captions.caption(scene, rng) for _ in range(300)]
  frames = {PHRASE.sub("#", t) for t in told}
  assert len(set(told)) > 250 and len(frames) > 30


def test_both_directions_are_told():
  group = scenes.Group(1, "small", "plain", "red", "star")
  other = scenes.Group(2, "large", "plain", "blue", "circle")
  scene = scenes.Scene((group, other), "above", "white")
  rng = np.random.default_rng(0)
  told = {parse(captions.caption(scene, rng))[1] for _ in range(30)}
  assert told == {"above", "below"}


def test_articles():
  group = scenes.Group(1, "small", "plain", "orange", "star")
  scene = scenes.Scene((group,), "top", "white")
  rng = np.random.default_rng(0)
  told = [captions.caption(scene, rng, 1.0) for _ in range(50)]
  assert any("an orange star" in t for t in told)
  assert not any("a orange" in t for t in told)


def test_a_description_is_the_scene_from_the_top_or_the_left():
  star = scenes.Group(1, "small", "plain", "red", "star")
  circles = scenes.Group(2, "large", "dotted", "blue", "circle")
  first, second = "one small plain red star", "two large dotted blue circle"
  describe = lambda *groups, relation: captions.description(
    scenes.Scene(groups, relation, "white")
  )
  for relation, converse, sides in (
    ("above", "below", "top {} bottom {} white"),
    ("left of", "right of", "left {} right {} white"),
  ):
    said = sides.format(first, second)
    assert describe(star, circles, relation=relation) == said
    assert describe(circles, star, relation=converse) == said
  assert describe(circles, relation="middle") == f"middle {second} white"
