"""Floating-point operations of a function, counted in its jaxpr.

What XLA says of a compiled program counts the body of every loop once.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

# Primitives that run the jaxprs among their parameters once.
CALLS = frozenset(
  (
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "jit",
    "remat2",
  )
)


def count_flops(fn: Callable[..., Any], *args: Any) -> int:
  """Operations in the convolutions and matrix products of fn(*args).

  args are arrays or trees of jax.ShapeDtypeStruct; nothing runs. The count is
  of the whole program on all its devices, a multiplication and an addition
  being two. A convolution counts every tap of its kernel, in the padding too,
  but not the zeros that lhs_dilation puts between pixels: a transposed
  convolution counts as the convolution it transposes. All that is in the jaxpr
  counts: what jax.checkpoint computes again, and what XLA may find unused. Of
  the branches of a cond, the dearest. ValueError for products within a while
  loop, whose length is not known, or in a primitive such as pallas_call.
  """
  return _flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _flops(jaxpr: Jaxpr) -> int:
  return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: JaxprEqn) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  inner = [_flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
  if not any(inner):
    return 0
  if name in CALLS:
    return sum(inner)
  if name == "scan":
    return params["length"] * sum(inner)
  if name == "cond":
    return max(inner)
  if name == "shard_map":
    shape = params["mesh"].shape
    return sum(inner) * math.prod(
      shape[axis] for axis in params["newly_manual_axes"]
    )
  raise ValueError(
    f"count_flops cannot know how often the products in a {name} run, expected "
    f"a scan, or a fori_loop of known length"
  )


def _dot(equation: JaxprEqn) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  lhs = equation.invars[0].aval.shape
  terms = math.prod(lhs[axis] for axis in contracted)
  return 2 * math.prod(equation.outvars[0].aval.shape) * terms


def _convolution(equation: JaxprEqn) -> int:
  kernel = equation.invars[1].aval.shape
  # An output sees the kernel of one output feature. That has the features of
  # one group only, and it is so for groups of the batch as well.
  features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
  terms = math.prod(kernel) // features
  holes = math.prod(equation.params["lhs_dilation"])
  return 2 * math.prod(equation.outvars[0].aval.shape) * terms // holes
