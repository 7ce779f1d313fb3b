"""Weights of a byte: what quantise loses, and T5 with them."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import build
from imagen_jax.configs import t5_xxl
from imagen_jax.nets.int8 import Int8Dense, quantise
from imagen_jax.nets.t5 import T5Encoder, int8_dense

SIZES = (48, 32, 4, 3, 8, 64)
FLOAT = T5Encoder(*SIZES)
INT8 = FLOAT.clone(dense=int8_dense)


def in_bytes(params):
  """(the tree of INT8, FLOAT's with the same numbers)."""
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  kept, same = {}, dict(flat)
  for name, value in flat.items():
    if name.endswith("/kernel"):
      kept[name], kept[name + "_scale"] = quantise(value)
      same[name] = kept[name] * kept[name + "_scale"]
    else:
      kept[name] = value
  return tuple(
    flax.traverse_util.unflatten_dict(f, sep="/") for f in (kept, same)
  )


def rms_error(found, expected):
  return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)
  ids = rng.integers(3, 48, (4, 20))
  return ids, np.arange(20)[None, :] < np.array([[3], [9], [20], [1]])


@pytest.fixture(scope="module")
def params(inputs, random_params):
  return random_params(FLOAT, *inputs)


def test_a_weight_is_off_by_half_a_step_at_most():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(50, 7)) * 10.0 ** np.arange(-3, 4)
  kernel[:, 2] = 0
  whole, scale = quantise(kernel)
  assert (whole.dtype, scale.dtype) == (np.int8, np.float32)
  assert scale.shape == (7,)
  assert (np.abs(kernel - whole * scale) <= scale / 2 * (1 + 1e-5)).all()
  largest = np.delete(np.abs(whole).max(0), 2)
  assert (largest == 127).all() and not whole[:, 2].any()
  np.testing.assert_array_equal(quantise(-kernel)[0], -whole)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_product_is_with_kernel_times_scale(dtype):
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, 5, 300)), rng.normal(size=(300, 7))
  whole, scale = quantise(kernel)
  variables = {"params": {"kernel": whole, "kernel_scale": scale}}
  with jax.default_matmul_precision("highest"):
    y = Int8Dense(7, dtype).apply(variables, x)
  assert y.dtype == dtype
  x = x.astype(dtype).astype(np.float64)
  atol, rtol = (1e-4, 1e-5) if dtype == jnp.float32 else (1e-2, 2**-8)
  np.testing.assert_allclose(
    y.astype(jnp.float32), x @ (whole * scale), atol=atol, rtol=rtol
  )


def test_only_kernels_are_in_bytes(inputs, params):
  kept, _ = in_bytes(params)
  shapes = jax.eval_shape(INT8.init, jax.random.key(0), *inputs)["params"]
  assert jax.tree.structure(kept) == jax.tree.structure(shapes)
  for (path, leaf), value in zip(
    jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(kept)
  ):
    assert leaf.shape == value.shape
    whole = path[-1].key == "kernel"
    assert leaf.dtype == (jnp.int8 if whole else jnp.float32), path


@pytest.mark.parametrize("scan", [False, True])
def test_t5_is_that_of_the_rounded_kernels(inputs, params, scan):
  kept, same = in_bytes(params)
  apply = lambda net, tree: jax.jit(net.apply)({"params": tree}, *inputs)
  with jax.default_matmul_precision("highest"):
    found = apply(INT8.clone(scan=scan), kept)
    np.testing.assert_allclose(found, apply(FLOAT, same), atol=2e-5)
    error = rms_error(found, apply(FLOAT, params))
  assert 1e-3 < error < 0.05


def test_a_loop_keeps_them_in_bytes(inputs, params):
  kept, _ = in_bytes(params)
  net = INT8.clone(scan=True, dtype=jnp.bfloat16)
  program = jax.jit(net.apply).lower({"params": kept}, *inputs).as_text()
  assert "tensor<3x32x64xi8>" in program
  assert "tensor<3x32x64xbf16>" not in program


def test_xxl_takes_half_the_memory():
  config, size = t5_xxl.get_config().text, {}
  for int8 in (False, True):
    config.int8 = int8
    shapes = jax.tree.leaves(build.text(config).shapes())
    size[int8] = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)
  assert size == {False: 9_525_026_816, True: 4_898_447_360}
