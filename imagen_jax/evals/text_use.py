"""Test of a stage's use of text: its loss under right and wrong captions."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.parallel.mesh import to_host
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.types import TextEmbedding

BATCHES = 4  # of 64 examples


def text_use(
  stage: Stage, params: Any, encode: TextEncoder, source: Sequence, seed: int
) -> dict[str, float]:
  """Computes a stage's mean loss under images' own and other captions.

  Args:
    stage: the stage.
    params: its net's parameters.
    encode: encodes the captions.
    source: the records of a split.
    seed: of the examples, times and noise.

  Returns:
    own_caption and other_caption: the mean losses; own_lower: the share of
    images whose own caption gives the lower loss.
  """
  # Imported here, as grain is of the extra `train`.
  from imagen_jax.data.pipeline import make_batches

  batches = make_batches(
    source,
    size=stage.size,
    lowres_size=stage.lowres_size,
    crop=stage.crop_size,
    tokenize=encode.tokenizer,
    global_batch=64,
    seed=seed,
  )
  loss = jax.jit(caption_losses, static_argnums=0)
  own, other = [], []
  for i in range(BATCHES):
    batch = next(batches)
    text = encode.from_ids(batch["tokens"], batch["mask"])
    key = jax.random.fold_in(jax.random.key(seed), i)
    pair = loss(stage, params, key, batch["image"], text, batch.get("lowres"))
    for losses, found in zip((own, other), to_host(pair), strict=True):
      losses.append(found)
  own, other = np.concatenate(own), np.concatenate(other)
  return {
    "own_caption": float(own.mean()),
    "other_caption": float(other.mean()),
    "own_lower": float((own < other).mean()),
  }


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
