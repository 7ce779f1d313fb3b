"""Sequences of equal blocks: rematerialisation and loops.

Neither changes a result or a parameter's name. A policy keeps results of a
block for the backward pass, which costs memory. All other results are computed
again in the backward pass. A loop over equal blocks costs no time and compiles
once. Without a loop XLA compiles each of a hundred residual blocks again.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# The modules of one block; None for a module that the block lacks.
Unit = tuple[nn.Module | None, ...]


def is_product(primitive: Any, *_: Any, **params: Any) -> bool:
  """Returns whether a primitive is a convolution or a product with weights.

  Attention's batched products are excluded: their size is pixels x pixels.
  """
  if primitive.name == "dot_general":
    _, (batch, _) = params["dimension_numbers"]
    return not batch
  return primitive.name == "conv_general_dilated"


# The results of a block that are kept for the backward pass: all that it needs
# except attention maps (see layers.attend), products alone, or none but the
# block's input.
REMAT = {
  "none": jax.checkpoint_policies.everything_saveable,
  "products": is_product,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def run_blocks(
  step: Callable[[Unit, Any, Any], tuple[Any, Any]],
  units: Sequence[Unit],
  carry: Any,
  xs: Sequence[Any] | None = None,
  *,
  remat: str = "none",
  scan: bool = False,
) -> tuple[Any, list[Any]]:
  """Runs step(unit, carry, x) -> (carry, y) for each unit and its x.

  Call it in a compact method that has just made the units.

  Args:
    step: the function of one block.
    units: the modules of each block.
    carry: the first block's input.
    xs: a further input of each block, or None.
    remat: a key of REMAT, which selects the results that the blocks keep.
    scan: whether neighbours of equal settings and shapes run as one loop.

  Returns:
    The last carry and the list of all y.

  Raises:
    ValueError: if remat is unknown.
  """
  if remat not in REMAT:
    known = ", ".join(map(repr, REMAT))
    raise ValueError(f"remat is {remat!r}, expected one of {known}")
  xs = [None] * len(units) if xs is None else xs
  ys = []
  if _is_written(units):
    for unit, x in zip(units, xs, strict=True):
      carry, y = step(unit, carry, x)
      ys.append(y)
    return carry, ys
  for modules, rows in _rows(units, xs, scan):
    run = partial(_run, step, modules)
    if remat != "none":
      run = jax.checkpoint(run, policy=REMAT[remat], prevent_cse=len(rows) == 1)
    if len(rows) == 1:
      carry, y = run(carry, rows[0])
      ys.append(y)
    else:
      stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
      carry, y = jax.lax.scan(run, carry, stacked)
      ys += [
        jax.tree.map(lambda leaf, i=i: leaf[i], y) for i in range(len(rows))
      ]
  return carry, ys


def _run(step, modules: Unit, carry: Any, row: tuple[Any, Any]):
  """Runs one step, given modules without variables and their variables."""
  variables, x = row
  unit = tuple(
    None if module is None else partial(module.apply, values)
    for module, values in zip(modules, variables, strict=True)
  )
  return step(unit, carry, x)


def _is_written(units: Sequence[Unit]) -> bool:
  """Returns whether units create variables, which a loop cannot return."""
  return any(
    module.is_mutable_collection(name)
    for module in itertools.chain(*units)
    if module is not None
    for name in ("params", "text")
  )


def _rows(units: Sequence[Unit], xs: Sequence[Any], scan: bool):
  """Yields (modules, [(variables, x), ...]) for each run of equal units."""
  split = [_split(unit) for unit in units]
  rows = [(values, x) for (_, values), x in zip(split, xs, strict=True)]
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), rows)
  key = lambda i: (split[i][0], shapes[i]) if scan else i
  for _, members in itertools.groupby(range(len(units)), key):
    members = list(members)
    yield split[members[0]][0], [rows[i] for i in members]


def _split(unit: Unit) -> tuple[Unit, tuple[Any, ...]]:
  """Splits a unit into unbound modules, without names, and their variables."""
  pairs = [(None, {}) if module is None else module.unbind() for module in unit]
  modules, variables = zip(*pairs, strict=True)
  dtypes = [getattr(module, "dtype", None) for module in modules]
  return modules, tuple(map(_as_used, variables, dtypes))


def _as_used(variables: Any, dtype: Any) -> Any:
  """Casts kernels to the dtype in which their module uses them.

  Sharded kernels are then all-gathered in that dtype, at half the size.
  """

  def cast(path, leaf):
    is_kernel = getattr(path[-1], "key", None) == "kernel"
    floats = jnp.issubdtype(leaf.dtype, jnp.floating)  # others are smaller yet
    return leaf.astype(dtype) if is_kernel and floats and dtype else leaf

  return jax.tree_util.tree_map_with_path(cast, variables)
