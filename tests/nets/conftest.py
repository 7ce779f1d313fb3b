"""What a program hands its primitives."""

import jax
import jax.numpy as jnp
import pytest


def all_equations(jaxpr):
  """Yields every equation, those of programs within programs too."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from all_equations(inner)


@pytest.fixture(scope="session")
def equations():
  """equations(jaxpr): all of them, within programs too."""
  return all_equations


@pytest.fixture(scope="session")
def dtypes_into():
  """dtypes_into(fn, names, *args): of what these primitives are given.

  Arrays of floats alone count; with `shape`, those of that shape.
  """

  def dtypes_into(fn, names, *args, shape=None):
    found = [
      variable.aval
      for equation in all_equations(jax.make_jaxpr(fn)(*args).jaxpr)
      if equation.primitive.name in names
      for variable in equation.invars
    ]
    return {
      aval.dtype.name
      for aval in found
      if jnp.issubdtype(aval.dtype, jnp.floating)
      and aval.shape == (shape or aval.shape)
    }

  return dtypes_into
