"""Image grids that show the progress of a training run."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from imagen_jax.data.images import to_uint8
from imagen_jax.data.png import captioned, grid, upsample
from imagen_jax.parallel import mesh
from imagen_jax.stage import Sampling, SamplingInputs, Stage, run_stage
from imagen_jax.types import TextEmbedding

LEAST = 64  # pixels; images of a lower resolution are shown upsampled


def sample_grid(
  stage: Stage,
  sampling: Sampling,
  params: Any,
  text: TextEmbedding | None,
  batch: dict[str, np.ndarray],
  *,
  steps: int | None = None,
) -> np.ndarray:
  """Samples images for a batch and arranges them beside the true images.

  The noise is fixed, so that grids of different steps can be compared.

  Args:
    stage: the stage that is trained.
    sampling: how the images are sampled.
    params: the net's weights, sharded over a mesh.
    text: the embeddings of the captions; None for an unconditional net.
    batch: float images `image` and, for super-resolution, `lowres`.
    steps: sampling steps to run; None runs all. With 0 the program is compiled
      and the samples are noise.

  Returns:
    uint8 [H, W, 3]: the low-resolution image (if any), the sample and the true
    image of each example, side by side.
  """
  count, side = batch["image"].shape[:2]
  lowres = batch.get("lowres")
  keys = jax.random.split(jax.random.key(0), count)
  samples = sample(stage, sampling, params, text, batch, keys, steps=steps)
  columns = [samples, batch["image"]]
  columns = columns if lowres is None else [lowres, *columns]
  return grid(
    _cells(columns, max(side, LEAST)),
    columns=len(columns) * max(1, round(math.sqrt(count) / 2)),
  )


def sample(
  stage: Stage,
  sampling: Sampling,
  params: Any,
  text: TextEmbedding | None,
  batch: dict[str, np.ndarray],
  keys: jax.Array,
  *,
  steps: int | None = None,
) -> np.ndarray:
  """Samples images for a batch, at the resolution that is trained on.

  Copies of the last example fill the rows up to what the devices of params
  shard.

  Args:
    stage: the stage that is trained.
    sampling: how the images are sampled.
    params: the net's weights, sharded over a mesh.
    text: the embeddings of the captions; None for an unconditional net.
    batch: float images `image`, for their shape, and `lowres` for
      super-resolution.
    keys: typed PRNG keys, one per example.
    steps: sampling steps to run; None runs all. With 0 the program is compiled
      and the samples are noise.

  Returns:
    float32 [B, side, side, 3], on the host.
  """
  count, side = batch["image"].shape[:2]
  lowres = batch.get("lowres")
  small = dataclasses.replace(
    stage,
    size=side,
    crop_size=None,
    lowres_size=None if lowres is None else lowres.shape[1],
  )
  devices = jax.tree.leaves(params)[0].sharding.mesh
  size = mesh.whole_rows(devices, count)
  rows = mesh.batch_sharding(devices, size)
  fill = lambda x: np.concatenate([x, np.repeat(x[-1:], size - count, axis=0)])
  put = lambda tree: mesh.put_rows(jax.tree.map(fill, tree), rows)
  keys = jax.random.wrap_key_data(put(np.asarray(jax.random.key_data(keys))))
  samples = run_stage(
    small,
    params,
    mesh.put_rows(small.blank(size), rows),
    0,
    sampling.num_steps if steps is None else steps,
    SamplingInputs(keys, put(text), put(lowres)),
    sampling.args(),
    rows=rows,
  ).z
  return mesh.to_host(samples)[:count]


def batch_grid(batch: dict[str, np.ndarray], captions: list[str]) -> np.ndarray:
  """Arranges a batch as it is trained on, each example above its caption.

  The low-resolution image, if any, is left of the image.
  """
  lowres, image = batch.get("lowres"), batch["image"]
  columns = [image] if lowres is None else [lowres, image]
  shown = max(image.shape[1], 2 * LEAST)
  cells = _cells(columns, shown)
  rows = [
    grid(cells[i : i + len(columns)], columns=len(columns))
    for i in range(0, len(cells), len(columns))
  ]
  rows = [captioned(*pair) for pair in zip(rows, captions, strict=True)]
  return grid(rows, columns=max(1, round(math.sqrt(len(rows)))))


def _cells(columns: list[np.ndarray], side: int) -> list[np.ndarray]:
  """Converts float columns [B, h, w, 3] to uint8 images, example by example."""
  return [
    upsample(to_uint8(column[i]), side)
    for i in range(len(columns[0]))
    for column in columns
  ]
