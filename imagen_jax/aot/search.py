"""Candidates for a training step that is too large, the dearest last."""

from collections.abc import Iterator, Mapping
from typing import Any


def remat_choices(net: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Policies by level, from the least recomputation to the most.

  The levels of high resolution, whose blocks are large and cheap, come first.
  """
  levels = len(net["channel_mult" if "channel_mult" in net else "blocks"])
  yield ("none",) * levels
  for less, more in (("none", "products"), ("products", "full")):
    for cut in range(1, levels + 1):
      yield (more,) * cut + (less,) * (levels - cut)


def set_remat(net: Any, policies: tuple[str, ...]) -> None:
  """Gives a net's config one policy per level."""
  if "channel_mult" in net:
    net.remat = policies
  else:
    net.blocks = tuple(
      {**block, "remat": policy} for block, policy in zip(net.blocks, policies)
    )


def searched(config: Any, ways: int) -> Iterator[dict[str, Any]]:
  """Changes the config to each candidate in turn; yields what that is.

  ways: over how many devices a batch's rows are spread, whose shares are not
  split into unequal parts. Recomputation costs more than another gathering of
  the weights, up to a point.
  """
  for parts in ((1, 2), (4,), (8,)):
    for policies in remat_choices(config.stage.net):
      for accumulate in parts:
        if config.data.batch_size // ways % accumulate:
          continue
        config.train.accumulate = accumulate
        set_remat(config.stage.net, policies)
        yield {"accumulate": accumulate, "remat": list(policies)}
