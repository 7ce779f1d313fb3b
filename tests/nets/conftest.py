"""Parameters that hide nothing."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_params():
  """params(module, *inputs): normals, none of them zero as heads begin.

  From numpy and the shapes alone: running the initialisers takes longer.
  """

  def params(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)

    def leaf(path, shape):
      name = path[-1].key
      inputs = np.prod(shape.shape[:-1]) if name == "kernel" else 10.0
      values = rng.normal(size=shape.shape) / np.sqrt(inputs)
      return (values + (name == "scale")).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)

  return params


def equations(jaxpr):
  """Every equation, those of programs within programs too."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


@pytest.fixture(scope="session")
def dtypes_into():
  """dtypes_into(fn, names, *args): of what these primitives are given.

  Arrays of floats alone count; with `shape`, those of that shape.
  """

  def dtypes_into(fn, names, *args, shape=None):
    found = [
      variable.aval
      for equation in equations(jax.make_jaxpr(fn)(*args).jaxpr)
      if equation.primitive.name in names
      for variable in equation.invars
    ]
    return {
      aval.dtype.name
      for aval in found
      if jax.numpy.issubdtype(aval.dtype, jax.numpy.floating)
      and aval.shape == (shape or aval.shape)
    }

  return dtypes_into
