"""Candidates for a training step that is too large, the most expensive last."""

from collections.abc import Iterator, Mapping
from typing import Any


def remat_choices(net: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields policies by level, from the least recomputation to the most.

  Levels of high resolution come first, whose blocks are large and cheap.
  """
  levels = len(net["channel_mult" if "channel_mult" in net else "blocks"])
  yield ("none",) * levels
  for less, more in (("none", "products"), ("products", "full")):
    for cut in range(1, levels + 1):
      yield (more,) * cut + (less,) * (levels - cut)


def set_remat(net: Any, policies: tuple[str, ...]) -> None:
  """Sets one recomputation policy per level in a net's config."""
  if "channel_mult" in net:
    net.remat = policies
  else:
    net.blocks = tuple(
      {**block, "remat": policy} for block, policy in zip(net.blocks, policies)
    )


def searched(config: Any, ways: int) -> Iterator[dict[str, Any]]:
  """Changes the config to each candidate in turn, and yields the changes.

  Recomputation costs more than another all-gather of the weights, up to a
  point.

  Args:
    config: a stage's config, changed in place.
    ways: the number of devices over which a batch is sharded. The examples of a
      device are only split into equal parts.
  """
  for parts in ((1, 2), (4,), (8,)):
    for policies in remat_choices(config.stage.net):
      for accumulate in parts:
        if config.data.batch_size // ways % accumulate:
          continue
        config.train.accumulate = accumulate
        set_remat(config.stage.net, policies)
        yield {"accumulate": accumulate, "remat": list(policies)}
