"""Mixtures of sources, as the paper's 460M and 400M pairs (Sec. 4.1)."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Ingredient:
  """Holds one source of a mixture.

  Attributes:
    records: the source's records, at least one.
    weight: the share of examples that come from it, relative to the weights of
      the other sources; more than 0.
    name: names it in messages.
  """

  records: Sequence[Mapping]
  weight: float
  name: str


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Holds sources that are shuffled and repeated each by itself, then mixed.

  Attributes:
    ingredients: the sources, at least one.
  """

  ingredients: tuple[Ingredient, ...]
