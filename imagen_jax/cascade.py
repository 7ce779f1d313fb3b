"""The cascade: text to a small picture, and from picture to larger picture."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from imagen_jax.diffusion.samplers import fold_in
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import TextEmbedding


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

  def with_sampling(self, **changes: Any) -> "Cascade":
    """The cascade with settings of Sampling changed in every stage."""
    changed = tuple(s.replace(**changes) for s in self.samplings)
    return dataclasses.replace(self, samplings=changed)

  def sample(
    self, params: Sequence[Any], keys: jax.Array, text: TextEmbedding
  ) -> Iterator[tuple[str, jax.Array]]:
    """Yields (name, pictures [B, size, size, 3] in [-1, 1]) stage by stage.

    params: one tree per stage. keys [B]: one typed key per picture; a picture
    depends on its own key and prompt alone.
    """
    pictures = None
    for i, name in enumerate(self.names):
      pictures = self.stages[i].sample(
        params[i],
        fold_in(keys, i),
        text,
        pictures,
        sampling=self.samplings[i],
      )
      yield name, pictures
