"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count of a compiled program takes the body of every loop once.
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
  """Counts operations in the convolutions and matrix products of fn(*args).

  A multiplication and an addition are two operations. A convolution counts
  every tap of its kernel, also in the padding, but not the zeros that
  lhs_dilation puts between pixels: a transposed convolution counts as the
  convolution that it transposes. Everything in the jaxpr counts, also what
  jax.checkpoint recomputes and what XLA may find unused. Of a cond, the most
  expensive branch counts.

  Args:
    fn: the function, which is traced and not run.
    *args: arrays, or trees of jax.ShapeDtypeStruct.

  Returns:
    The count of the whole program over all its devices.

  Raises:
    ValueError: there are products in a while loop, whose length is unknown, or
      in a primitive such as pallas_call.
  """
  return jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr) -> int:
  """Counts the operations of a traced function, as count_flops does."""
  return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: JaxprEqn) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  inner = [jaxpr_flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
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
  # Each output uses the kernel of one output feature, which has the input
  # features of one group only. The same holds for groups of the batch.
  features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
  terms = math.prod(kernel) // features
  holes = math.prod(equation.params["lhs_dilation"])
  return 2 * math.prod(equation.outvars[0].aval.shape) * terms // holes
