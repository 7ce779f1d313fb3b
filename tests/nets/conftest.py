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
