"""Examples of captioned_shapes, each a pure function of its index."""

import collections.abc

import numpy as np

from imagen_jax.shapes import captions, drawing, scenes

LEAVE_OUT = 0.3  # in train only, so that short prompts are in distribution


def draw_example(split: str, i: int) -> dict[str, np.ndarray | str]:
  """Draws example i of a split.

  No scene of train or test has a combination that `held_out` keeps for
  test_unseen.

  Returns:
    image uint8 [256, 256, 3], caption, and scene (JSON).

  Raises:
    ValueError: the split is unknown.
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
  """Draws the examples of a split of captioned_shapes when they are read.

  Element i is `draw_example(split, i)`, so the first elements equal the stored
  dataset's. No element is cached: drawing one takes about 2 ms of a core.
  """

  def __init__(self, split: str):
    if split not in scenes.SPLITS:
      raise ValueError(f"split is {split!r}, expected one of {scenes.SPLITS}")
    self._split = split

  def fingerprint(self) -> str:
    """Describes the records, which follow from the split."""
    return f"endless {self._split}"

  def __len__(self) -> int:
    return 10**9  # more than a training run reads; grain shuffles up to 2^32

  def __getitem__(self, i: int) -> dict[str, np.ndarray | str]:
    if not 0 <= i < len(self):
      raise IndexError(f"example {i} is none of the {len(self)}")
    return draw_example(self._split, i)
