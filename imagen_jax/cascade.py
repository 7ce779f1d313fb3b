"""The cascade: text to a small image, then super-resolution."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from imagen_jax.diffusion.samplers import Carry, fold_in
from imagen_jax.parallel import mesh
from imagen_jax.stage import Sampling, SamplingInputs, Stage
from imagen_jax.types import TextEmbedding


@dataclasses.dataclass(frozen=True)
class Cascade:
  """Holds stages with their sampling settings, from small to large (Sec. 2).

  Attributes:
    names: the name of each stage.
    stages: a base stage, then super-resolution stages. Each upsamples images of
      the size that the stage before it makes. A single stage may be a
      super-resolution stage, for images that it is given.
    samplings: the sampling settings of each stage.
  """

  names: tuple[str, ...]
  stages: tuple[Stage, ...]
  samplings: tuple[Sampling, ...]

  def __post_init__(self):
    assert len(self.names) == len(self.stages) == len(self.samplings)
    if not self.stages:
      raise ValueError("a cascade has no stages, expected at least one")
    size = self.stages[0].lowres_size if len(self.stages) == 1 else None
    for name, stage, sampling in zip(
      self.names, self.stages, self.samplings, strict=True
    ):
      if stage.lowres_size != size:
        raise ValueError(
          f"stage {name} has lowres_size {stage.lowres_size}, expected {size}, "
          "the size of the stage before it"
        )
      size = stage.size
      try:
        stage.check_sampling(sampling)
      except ValueError as error:
        raise ValueError(f"stage {name}: {error}") from error


def used_shapes(init: Callable[[], Any]) -> Any:
  """Returns the shapes of a net's weights and the dtypes to sample with.

  A layer with a dtype of its own casts its kernel and bias to it before use.
  These are kept in that dtype, so that images are bit-identical. Norms, heads
  and learned vectors, which are used in float32, stay in float32.

  Args:
    init: initialises the net's weights.
  """
  dtypes: dict[tuple[str, ...], Any] = {}

  def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any):
    module = context.module
    if isinstance(module, nn.Dense | nn.DenseGeneral | nn.Conv):
      dtypes[module.path] = module.dtype
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    shapes = jax.eval_shape(init)

  def kept(path: Any, leaf: Any) -> Any:
    *module, name = (key.key for key in path)
    dtype = dtypes.get(tuple(module)) if name in ("kernel", "bias") else None
    return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype)

  return jax.tree_util.tree_map_with_path(kept, shapes)


@functools.partial(jax.jit, static_argnames="rows")
def image_keys(
  seeds: jax.Array, indices: jax.Array, stage: jax.Array, *, rows: Sharding
) -> jax.Array:
  """Returns the keys [B] of images for one stage of a cascade.

  The key of image i of seed s is fold_in(key(s), i). The stage's number is
  folded into that key.

  Args:
    seeds: uint32 [B].
    indices: int32 [B], the number of each image in its seed's sequence.
    stage: int32 [], the stage's number.
    rows: the sharding of the keys.
  """
  keys = jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(
    seeds, indices
  )
  return jax.lax.with_sharding_constraint(fold_in(keys, stage), rows)


def carry_places(rows: NamedSharding, height: bool) -> NamedSharding | Carry:
  """Returns the shardings of a sampler's carry, or one for all of it.

  Args:
    rows: the sharding of the batch's rows.
    height: whether the tensor axis shards the height of the images, and no
      weights. Convolutions then exchange a few rows of pixels with the
      neighbours, where sharded channels sum entire images over the devices.
  """
  if not height:
    return rows
  pixels = NamedSharding(rows.mesh, P(*rows.spec, "tensor"))
  return Carry(pixels, pixels, rows)


@functools.partial(jax.jit, static_argnames="rows")
def by_rows(images: jax.Array, *, rows: Sharding) -> jax.Array:
  """Reshards images to whole rows of the batch."""
  return jax.lax.with_sharding_constraint(images, rows)


def filled(images: Sequence[Any], size: int) -> list[Any]:
  """Fills a batch up to its size with copies of the last image."""
  return [*images, *[images[-1]] * (size - len(images))]


def stage_inputs(
  number: int,
  images: Sequence[Any],
  text: TextEmbedding | None,
  lowres: np.ndarray | None,
  rows: NamedSharding,
) -> SamplingInputs:
  """Returns a stage's inputs for a batch of images, sharded by rows.

  Args:
    number: the stage's number.
    images: the rows of the batch, with the attributes seed and index.
    text: the prompts of the rows that this process holds, which
      mesh.host_rows names; None for nets without text.
    lowres: float32 [k, h, w, 3] in [-1, 1], the images to upsample, of the same
      rows; None for a base stage.
    rows: the sharding of the batch.
  """
  size = len(images)
  seeds = np.array([image.seed for image in images], np.uint32)
  indices = np.array([image.index for image in images], np.int32)
  words, lowres = mesh.to_global((text, lowres), rows, size)
  keys = image_keys(seeds, indices, np.int32(number), rows=rows)
  return SamplingInputs(keys, words, lowres)
