"""The cascade: text to a small picture, and from picture to larger picture."""

import dataclasses
import functools

import jax
from jax.sharding import Sharding

from imagen_jax.diffusion.samplers import fold_in
from imagen_jax.stage import Sampling, Stage


@dataclasses.dataclass(frozen=True)
class Cascade:
  """Stages by name with their sampling settings, from small to large (Sec. 2).

  Checked: the first stage needs no low-res picture, and every other enlarges
  pictures of the size that the one before it makes.
  """

  names: tuple[str, ...]
  stages: tuple[Stage, ...]
  samplings: tuple[Sampling, ...]

  def __post_init__(self):
    assert len(self.names) == len(self.stages) == len(self.samplings)
    if not self.stages:
      raise ValueError("a cascade has no stages, expected at least one")
    size = None
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


@functools.partial(jax.jit, static_argnames="rows")
def image_keys(
  seeds: jax.Array, indices: jax.Array, stage: jax.Array, *, rows: Sharding
) -> jax.Array:
  """Returns the keys [B] of images for one stage of a cascade.

  The key of image i of seed s is fold_in(key(s), i); that number is folded into
  it for a stage. seeds uint32 [B], indices int32 [B], stage int32 [].
  """
  keys = jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(
    seeds, indices
  )
  return jax.lax.with_sharding_constraint(fold_in(keys, stage), rows)
