"""Options of XLA's compiler that make programs faster, by backend.

They are passed with each program, never by XLA_FLAGS: flags belong to the
process, and an unknown one ends it.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# YNNPACK computes sums alone. For them it is faster than XLA's own loops, but
# its convolutions are slower than Eigen's, most of all their weight gradients
# (docs/speed.md). By default it computes both.
_CPU = {
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}


def options() -> dict[str, str]:
  """Returns the options for programs of the default backend.

  They change no formula, only which of XLA's kernels computes it. An option
  that this version of jaxlib lacks is left out, as is one that the user has set
  in XLA_FLAGS.
  """
  if jax.default_backend() != "cpu":
    return {}
  given = os.environ.get("XLA_FLAGS", "")
  return {
    name: value
    for name, value in _CPU.items()
    if name not in given and _is_known(name, value)
  }


@functools.cache
def _is_known(name: str, value: str) -> bool:
  """Returns whether jaxlib accepts an option, by compiling an empty program."""
  empty = jax.jit(lambda: None, compiler_options={name: value})
  try:
    empty.lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def jit(fn: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
  """Compiles a function as jax.jit does, with `options`.

  They are looked up at the first call, because an import must not start the
  backend. Within another jitted function or a gradient, the options of the
  outermost program count.

  Args:
    fn: the function.
    **settings: further arguments of jax.jit.
  """
  inner = jax.jit(fn, **settings)

  @functools.cache
  def outermost() -> Callable[..., Any]:
    return jax.jit(fn, compiler_options=options(), **settings)

  @functools.wraps(fn)
  def call(*args: Any, **kwargs: Any) -> Any:
    # Under a trace new arrays are tracers too, even if no argument is one.
    leaves = (jnp.zeros(()), *jax.tree.leaves((args, kwargs)))
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    return (inner if traced else outermost())(*args, **kwargs)

  return call
