"""The examples of captioned_shapes, each a pure function of its index."""

import collections.abc

import numpy as np

from imagen_jax.shapes import captions, drawing, scenes

LEAVE_OUT = 0.3  # so that short prompts are in distribution; train only


def draw_example(split: str, i: int) -> dict[str, np.ndarray | str]:
  """Draws example i of a split.

  The result has image uint8 [256, 256, 3], caption, and scene (JSON). No scene
  of train or test has a combination that `held_out` keeps for test_unseen.
  ValueError for an unknown split.
  """
  if split not in scenes.SPLITS:
    raise ValueError(f"split is {split!r}, expected one of {scenes.SPLITS}")
  rng = np.random.default_rng((scenes.SPLITS.index(split), i))
  scene, placed = scenes.sample_scene(rng, split)
  leave_out = LEAVE_OUT if split == "train" else 0.0
  return {
    "image": drawing.draw(scene, placed),
    "caption": captions.caption(scene, rng, leave_out),
    "scene": scenes.to_json(scene, placed),
  }


class Endless(collections.abc.Sequence):
  """A split of captioned_shapes without a last example, drawn when read.

  Element i is `draw_example(split, i)`, so the first elements are the stored
  data set's. Nothing is kept: an element takes about 2 ms of a core.
  """

  def __init__(self, split: str):
    if split not in scenes.SPLITS:
      raise ValueError(f"split is {split!r}, expected one of {scenes.SPLITS}")
    self._split = split

  def __len__(self) -> int:
    return 10**9  # more than a training reads; grain shuffles up to 2^32

  def __getitem__(self, i: int) -> dict[str, np.ndarray | str]:
    if not 0 <= i < len(self):
      raise IndexError(f"example {i} is none of the {len(self)}")
    return draw_example(self._split, i)
