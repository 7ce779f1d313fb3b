"""The sharding of each parameter over the mesh, by rules on its path."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

REPLICATED = "replicated"
# A pattern that is searched for in a parameter's path, and its placement. The
# placement is REPLICATED, or the mesh axis of each dimension, in order, without
# None at the end. If "fsdp" is not among the axes, it takes the largest free
# dimension that it divides. It takes the last dimension only if no other is
# left: that lies along a TPU's 128 lanes and is slow to all-gather. The first
# match counts.
Rule = tuple[str, tuple[str | None, ...] | str]
RULES: tuple[Rule, ...] = (
  # Vectors are small, and every device uses them.
  (r"(^|/)((kernel_)?scale|bias|cls_pos|null_(tokens|mask))$", REPLICATED),
  (r"/rel_embedding$", REPLICATED),
  # T5 and attention: heads, hidden features of the MLP, and the vocabulary.
  # fsdp takes an embedding's features. If it took the vocabulary, a look-up
  # would sum the whole batch over all devices.
  (r"/embedding$", ("tensor", "fsdp")),
  (r"/(text_)?(query|key|value)/kernel$", (None, "tensor")),
  (r"/wi(_[01])?/kernel$", (None, "tensor")),
  (r"/(out|wo)/kernel$", ("tensor",)),
  # Conditioning of a net: features between the two layers of an MLP, features
  # that scale and shift channels, text features, and the pooled text's input.
  (r"/(dense_0|emb_proj|dense)/kernel$", (None, "tensor")),
  (r"/(dense_1|text_proj)/kernel$", ("tensor",)),
  # A residual block: the channels between its two convolutions. Not the
  # channels of the 1x1 skip convolution and of resampling: summing their images
  # over devices costs more than the convolutions do.
  (r"/conv_0/kernel$", (None, None, None, "tensor")),
  (r"/conv_1/kernel$", (None, None, "tensor")),
  (r"(^|/)kernel$", ()),
)


@dataclasses.dataclass(frozen=True)
class Placement:
  """Shards parameters over a mesh by the first rule that matches their path.

  Attributes:
    mesh: the devices.
    rules: patterns and placements, in order.
    fsdp: the mesh axes that "fsdp" in the rules stands for.
  """

  mesh: Mesh
  rules: tuple[Rule, ...] = RULES
  fsdp: tuple[str, ...] = ("fsdp",)

  def params(self, tree: Any) -> Any:
    """Returns a sharding for every leaf of a tree.

    Raises:
      ValueError: no rule matches a leaf.
    """
    return jax.tree_util.tree_map_with_path(self._of, tree)

  def put(self, tree: Any) -> Any:
    """Shards arrays that every host holds in full."""
    return jax.device_put(tree, self.params(tree))

  def _of(self, path: Any, leaf: Any) -> NamedSharding:
    """Returns the sharding of one leaf."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for pattern, axes in self.rules:
      if re.search(pattern, name):
        return NamedSharding(self.mesh, self._spec(axes, leaf.shape))
    raise ValueError(f"no sharding rule matches parameter {name}")

  def _spec(self, axes: Any, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns the mesh axes of a shape's dimensions, where they divide it."""
    if axes == REPLICATED:
      return PartitionSpec()
    ways = dict(self.mesh.shape)
    ways["fsdp"] = math.prod(ways[name] for name in self.fsdp)
    fits = lambda axis, n: ways[axis] > 1 and not n % ways[axis]
    axes = [*axes, *[None] * (len(shape) - len(axes))]
    axes = [
      axis if axis and fits(axis, n) else None for axis, n in zip(axes, shape)
    ]
    free = [
      (i < len(shape) - 1, n, i)
      for i, n in enumerate(shape)
      if axes[i] is None and fits("fsdp", n)
    ]
    if free and "fsdp" not in axes:
      axes[max(free)[-1]] = "fsdp"
    while axes and axes[-1] is None:
      axes.pop()
    over = self.fsdp if len(self.fsdp) > 1 else self.fsdp[0]
    return PartitionSpec(*(over if axis == "fsdp" else axis for axis in axes))


def like_param(leaf: Any, param: Any, sharding: NamedSharding) -> NamedSharding:
  """Returns the sharding of an optimizer's array: that of its parameter.

  The array has the parameter's shape or, as Adafactor's factored moments, one
  dimension less. Any other array, such as a placeholder, is replicated.
  """
  axes = [*sharding.spec, *[None] * (len(param.shape) - len(sharding.spec))]
  if leaf.shape != param.shape:
    fewer = [
      axes[:i] + axes[i + 1 :]
      for i in range(len(axes))
      if leaf.shape == (*param.shape[:i], *param.shape[i + 1 :])
    ]
    # Of two equal dimensions, either may be the one that is missing.
    axes = min(fewer, key=lambda left: left.count(None), default=[])
  return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def replicated_bytes(leaves: Sequence[Any], least: int = 2**20) -> int:
  """Returns the bytes of replicated arrays that are larger than `least`."""
  sizes = [
    leaf.size * leaf.dtype.itemsize
    for leaf in leaves
    if leaf.sharding.is_fully_replicated
  ]
  return sum(size for size in sizes if size > least)


def placed(tree: Any, shardings: Any) -> Any:
  """Attaches shardings to shapes: one for each leaf, or one for all leaves."""
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    shardings,
  )
