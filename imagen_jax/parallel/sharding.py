"""Which part of which parameter a device holds: rules by path."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

REPLICATED = "replicated"
# A pattern that is searched for in a parameter's path, and its placement: the
# mesh axis of each dimension, in order, those at the end left out if None; or
# REPLICATED. "fsdp", if it is not among them, takes the largest dimension that
# it divides and that is free, the last one if there is no other: it lies along
# a TPU's 128 lanes, and pieces of it are slow to put together. The first match
# counts.
Rule = tuple[str, tuple[str | None, ...] | str]
RULES: tuple[Rule, ...] = (
  # Vectors: small, and used by every device.
  (r"(^|/)((kernel_)?scale|bias|cls_pos)$", REPLICATED),
  (r"/rel_embedding$", REPLICATED),
  # T5 and attention: heads, the hidden features of the MLP, the vocabulary.
  # Of an embedding fsdp takes the features: in parts along the vocabulary, it
  # is looked up by summing the whole batch over all devices.
  (r"/embedding$", ("tensor", "fsdp")),
  (r"/(text_)?(query|key|value)/kernel$", (None, "tensor")),
  (r"/wi_[01]/kernel$", (None, "tensor")),
  (r"/(out|wo)/kernel$", ("tensor",)),
  # What conditions a net: features between the two layers of an MLP, those
  # that scale and shift channels, those of the text; and into the pooled text.
  (r"/(dense_0|emb_proj|dense)/kernel$", (None, "tensor")),
  (r"/(dense_1|text_proj)/kernel$", ("tensor",)),
  # A residual block: the channels between its two convolutions. Not those of
  # the 1x1 one beside these and of resampling: to sum their pictures over
  # devices costs more than they do.
  (r"/conv_0/kernel$", (None, None, None, "tensor")),
  (r"/conv_1/kernel$", (None, None, "tensor")),
  (r"(^|/)kernel$", ()),
)


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where parameters go on a mesh, by the first rule that matches a path."""

  mesh: Mesh
  rules: tuple[Rule, ...] = RULES

  def params(self, tree: Any) -> Any:
    """A sharding for every leaf of a tree; ValueError for one without rule."""
    return jax.tree_util.tree_map_with_path(self._of, tree)

  def put(self, tree: Any) -> Any:
    """Arrays that every host has whole -> in their places."""
    return jax.device_put(tree, self.params(tree))

  def _of(self, path: Any, leaf: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for pattern, axes in self.rules:
      if re.search(pattern, name):
        return NamedSharding(self.mesh, self._spec(axes, leaf.shape))
    raise ValueError(f"no sharding rule matches parameter {name}")

  def _spec(self, axes: Any, shape: tuple[int, ...]) -> PartitionSpec:
    """Axes of a shape's dimensions, but for those they do not divide."""
    if axes == REPLICATED:
      return PartitionSpec()
    fits = lambda axis, n: (
      self.mesh.shape[axis] > 1 and not (n % self.mesh.shape[axis])
    )
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
    return PartitionSpec(*axes)


def like_param(leaf: Any, param: Any, sharding: NamedSharding) -> NamedSharding:
  """Where what an optimizer keeps of a parameter lies: with the parameter.

  It has the parameter's shape, or, as Adafactor's factored moments, one
  dimension less; anything else, such as a placeholder, is replicated.
  """
  axes = [*sharding.spec, *[None] * (len(param.shape) - len(sharding.spec))]
  if leaf.shape != param.shape:
    fewer = [
      axes[:i] + axes[i + 1 :]
      for i in range(len(axes))
      if leaf.shape == (*param.shape[:i], *param.shape[i + 1 :])
    ]
    # Of equal dimensions either may be the one that is gone.
    axes = min(fewer, key=lambda left: left.count(None), default=[])
  return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def replicated_bytes(leaves: Sequence[Any], least: int = 2**20) -> int:
  """Bytes of the arrays above `least` that every device has whole."""
  sizes = [
    leaf.size * leaf.dtype.itemsize
    for leaf in leaves
    if leaf.sharding.is_fully_replicated
  ]
  return sum(size for size in sizes if size > least)


def placed(tree: Any, shardings: Any) -> Any:
  """Shapes with shardings: of every leaf, or one for all."""
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    shardings,
  )
