"""Test of a stage's use of text: its loss under right and wrong captions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.stage import Stage
from imagen_jax.types import TextEmbedding


def caption_losses(
  stage: Stage,
  params: Any,
  key: jax.Array,
  x: jax.Array,
  text: TextEmbedding,
  lowres: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
  """Computes the losses of images under their own and another caption.

  Both losses use the same times and noise, so only the text differs. No text is
  dropped.

  Args:
    stage: the stage.
    params: its net's parameters.
    key: draws times and noise.
    x: images [B, H, W, 3] in [-1, 1].
    text: their captions, B rows. The other caption is the preceding row.
    lowres: the low-resolution images of the batch; None for a base stage.

  Returns:
    (own, other): the losses [B].
  """
  certain = dataclasses.replace(stage, text_drop=0.0)
  other = jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), text)
  draws = certain.draw(key, len(x))
  own, _ = certain.loss(params, draws, x, text, lowres)
  wrong, _ = certain.loss(params, draws, x, other, lowres)
  return own, wrong
