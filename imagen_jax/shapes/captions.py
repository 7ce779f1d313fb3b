"""English captions of scenes, in varied wording."""

import numpy as np

from imagen_jax.shapes import scenes

_COUNTS = {
  1: ("a", "one", "a single"),
  2: ("two", "2", "a pair of"),
  3: ("three", "3"),
}
_SIZES = {"small": ("small", "little"), "large": ("large", "big")}
_BEFORE = {
  "plain": ("plain", "solid"),
  "striped": ("striped",),
  "dotted": ("dotted",),
}
_AFTER = {"striped": ("with stripes",), "dotted": ("with dots",)}
_RELATIONS = {
  "above": ("above", "over"),
  "below": ("below", "under"),
  "left of": ("to the left of", "left of"),
  "right of": ("to the right of", "right of"),
}
_PLACES = {
  "top": ("at the top", "in the upper part"),
  "bottom": ("at the bottom", "in the lower part"),
  "left": ("on the left", "on the left side"),
  "right": ("on the right", "on the right side"),
  "middle": ("in the middle", "in the center"),
}
# {a} is a group, {where} its place or its relation to the other group, {is} the
# verb, which agrees with the group in number.
_SENTENCES = (
  "{a} {where}",
  "a picture of {a} {where}",
  "an image showing {a} {where}",
  "there {is} {a} {where}",
  "{where} there {is} {a}",
  "{a} {is} {where}",
)
_WITHOUT_PLACE = (
  "{a}",
  "a picture of {a}",
  "an image showing {a}",
  "there {is} {a}",
)
_BACKGROUNDS = (
  "{sentence} on {a_color} background",
  "{sentence} against {a_color} background",
  "{sentence}, {color} background",
  "{sentence}. the background is {color}",
  "on {a_color} background, {sentence}",
  "{color} background: {sentence}",
)


def caption(
  scene: scenes.Scene, rng: np.random.Generator, leave_out: float = 0.0
) -> str:
  """Writes a lower-case caption of `scene` in random wording.

  Args:
    scene: the scene.
    rng: draws the wording and the omissions.
    leave_out: the probability, 0 to 1, of omitting the sizes, the fills, the
      background and the place of a single group, each on its own. All other
      facts are always stated.
  """
  sizes, fills, background, place = rng.random(4) >= leave_out
  phrases = [_group(g, rng, sizes, fills) for g in scene.groups]
  first, relation = 0, scene.relation
  if len(phrases) == 1:
    where = _pick(rng, _PLACES[relation]) if place else ""
  else:
    if rng.random() < 0.5:  # state the relation from the other group
      first, relation = 1, scenes.CONVERSE[relation]
    where = f"{_pick(rng, _RELATIONS[relation])} {phrases[1 - first]}"
  verb = "is" if scene.groups[first].count == 1 else "are"
  words = {"a": phrases[first], "where": where, "is": verb}
  sentences = _SENTENCES if where else _WITHOUT_PLACE
  sentence = _pick(rng, sentences).format(**words)
  if not background:
    return sentence
  color = scene.background
  words = {"sentence": sentence, "color": color, "a_color": _a(color)}
  return _pick(rng, _BACKGROUNDS).format(**words)


def description(scene: scenes.Scene) -> str:
  """Describes all of `scene` in a fixed order, from the top or the left.

  Example: "left one small plain red star right two large dotted blue circle
  white".
  """
  relation, groups = scene.relation, scene.groups
  if relation in ("below", "right of"):
    relation, groups = scenes.CONVERSE[relation], groups[::-1]
  sides = {"above": ("top", "bottom"), "left of": ("left", "right")}
  words = []
  for side, g in zip(sides.get(relation, (relation,)), groups, strict=True):
    count = ("one", "two", "three")[g.count - 1]
    words += [side, count, g.size, g.fill, g.color, g.shape]
  return " ".join([*words, scene.background])


def _pick(rng, options):
  return options[rng.integers(len(options))]


def _a(words: str) -> str:
  return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _group(group: scenes.Group, rng, sizes: bool, fills: bool) -> str:
  """Writes a group as a noun phrase: "two small green stars with dots"."""
  words = [_pick(rng, _SIZES[group.size])] if sizes else []
  after = ()
  if fills and group.fill in _AFTER and rng.random() < 0.4:
    after = (_pick(rng, _AFTER[group.fill]),)
  elif fills:
    words.append(_pick(rng, _BEFORE[group.fill]))
  words += [group.color, group.shape + "s" * (group.count > 1), *after]
  count = _pick(rng, _COUNTS[group.count])
  phrase = " ".join(words)
  return _a(phrase) if count == "a" else f"{count} {phrase}"
