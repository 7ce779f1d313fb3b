"""Whether a stage reads its text: the loss under the right and a wrong one."""

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
  """Losses [B] of pictures with their own caption and with their neighbour's.

  Both with the same times and noise, so the difference is the text's alone.
  x [B, H, W, 3] and lowres are a training batch of the stage.
  """
  certain = dataclasses.replace(stage, text_drop=0.0)
  other = jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), text)
  draws = certain.draw(key, len(x))
  own, _ = certain.loss(params, draws, x, text, lowres)
  wrong, _ = certain.loss(params, draws, x, other, lowres)
  return own, wrong
