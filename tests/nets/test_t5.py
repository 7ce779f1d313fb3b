"""T5Encoder against transformers (by the fixture) and against its own rules."""

import math
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from imagen_jax.nets.t5 import T5Encoder, relative_position_bucket

ORACLES = pathlib.Path(__file__).parents[1] / "oracles"
SIZES = dict(
  vocab_size=96,
  emb_dim=40,
  num_heads=4,
  num_encoder_layers=3,
  head_dim=12,
  mlp_dim=56,
)


@pytest.fixture(scope="module")
def fixture():
  return safetensors.numpy.load_file(ORACLES / "t5_v1_1.safetensors")


@pytest.fixture(scope="module")
def params(fixture):
  flat = {
    name.removeprefix("params/"): value
    for name, value in fixture.items()
    if name.startswith("params/")
  }
  return flax.traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="module")
def encode(params):
  apply = jax.jit(T5Encoder(**SIZES).apply)

  def encode(ids, mask):
    with jax.default_matmul_precision("highest"):
      return np.asarray(apply({"params": params}, ids, mask))

  return encode


@pytest.mark.parametrize("name", ["short", "long"])
def test_equals_transformers_padding_included(fixture, encode, name):
  output = encode(fixture[f"{name}/ids"], fixture[f"{name}/mask"])
  assert output.dtype == np.float32
  np.testing.assert_allclose(
    output, fixture[f"{name}/output"], rtol=0, atol=2e-5
  )


def test_tree_is_t5x(params):
  ids = jnp.zeros((1, 4), jnp.int32)
  init = jax.eval_shape(T5Encoder(**SIZES).init, jax.random.key(0), ids, ids)
  shape = lambda leaf: leaf.shape
  assert jax.tree.map(shape, init["params"]) == jax.tree.map(shape, params)


def test_xxl_has_the_published_size():
  module = T5Encoder(
    vocab_size=32128,
    emb_dim=4096,
    num_heads=64,
    num_encoder_layers=24,
    head_dim=64,
    mlp_dim=10240,
  )
  ids = jnp.zeros((1, 4), jnp.int32)
  params = jax.eval_shape(module.init, jax.random.key(0), ids, ids)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  assert count == 4_762_310_656


def test_padding_content_changes_no_real_token(fixture, encode):
  ids, mask = fixture["short/ids"], fixture["short/mask"]
  other = np.where(mask, ids, 7)
  assert (other != ids).any()
  np.testing.assert_array_equal(
    encode(ids, mask)[mask], encode(other, mask)[mask]
  )


def test_padding_is_still_a_query(fixture, encode):
  """All padding positions of the empty prompt see </s> alone: one vector."""
  output = encode(fixture["short/ids"], fixture["short/mask"])[0]
  np.testing.assert_allclose(output[1:], output[1:2].repeat(76, 0), atol=1e-5)
  assert np.abs(output[1] - output[0]).max() > 0.1


def test_row_without_real_tokens_is_finite(fixture, encode):
  ids, mask = fixture["short/ids"], fixture["short/mask"].copy()
  whole = encode(ids, mask)
  mask[2] = False
  output = encode(ids, mask)
  assert np.isfinite(output).all()
  np.testing.assert_array_equal(output[[0, 1, 3]], whole[[0, 1, 3]])


def test_row_without_real_tokens_has_finite_gradients(fixture, params):
  ids = fixture["short/ids"][:1, :8]
  module = T5Encoder(**SIZES | {"num_encoder_layers": 1})
  loss = lambda p: module.apply({"params": p}, ids, ids < 0).sum()
  for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert jnp.isfinite(leaf).all()


def test_bfloat16_is_close_to_float32(fixture, params):
  ids, mask = fixture["short/ids"], fixture["short/mask"]
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
  module = T5Encoder(**SIZES, dtype=jnp.bfloat16)
  output = jax.jit(module.apply)({"params": half}, ids, mask)
  assert output.dtype == jnp.float32
  expected = fixture["short/output"]
  error = np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2))
  assert 1e-4 < error < 0.02
  assert (output.astype(jnp.bfloat16) != output).mean() > 0.9


def test_what_bfloat16_must_not_touch(fixture, params, dtypes_into):
  """Norms, softmax, and the residual sums, which grow into the thousands."""
  ids, mask = fixture["short/ids"], fixture["short/mask"]
  module = T5Encoder(**SIZES, dtype=jnp.bfloat16)
  into = lambda *names, shape=None: dtypes_into(
    module.apply, names, {"params": params}, ids, mask, shape=shape
  )
  assert into("exp", "rsqrt", "reduce_max", "reduce_sum") == {"float32"}
  assert into("add", shape=(*ids.shape, SIZES["emb_dim"])) == {"float32"}
  assert into("dot_general") == {"bfloat16"}


def test_fresh_kernels_have_t5x_scales():
  """The query kernel carries the 1 / sqrt(head_dim) that attention lacks."""
  module = T5Encoder(**SIZES | {"num_encoder_layers": 1})
  ids = jnp.zeros((1, 4), jnp.int32)
  params = jax.jit(module.init)(jax.random.key(0), ids, ids)["params"]
  layer = params["encoder"]["layers_0"]
  stds = {
    "embedding": params["token_embedder"]["embedding"].std(),
    "query": layer["attention"]["query"]["kernel"].std() * (40 * 12) ** 0.5,
    "key": layer["attention"]["key"]["kernel"].std() * 40**0.5,
    "out": layer["attention"]["out"]["kernel"].std() * 48**0.5,
    "wi_0": layer["mlp"]["wi_0"]["kernel"].std() * 40**0.5,
    "wo": layer["mlp"]["wo"]["kernel"].std() * 56**0.5,
  }
  for name, std in stds.items():
    assert abs(std - 1) < 0.1, name


def test_id_outside_the_vocabulary_is_not_mistaken_for_another(encode):
  ids = np.array([[5, 96, 1]])
  assert np.isnan(encode(ids, ids >= 0)).any()


def slow_bucket(offset, buckets=32, max_distance=128):
  """The definition in integers: floor(8 log(n/8) / log 16) by powers."""
  half = buckets // 2
  exact, n = half // 2, abs(offset)
  bucket = n
  if n >= exact:
    steps = half - exact
    bucket = exact
    while bucket < half - 1 and (
      n**steps * exact ** (bucket + 1 - exact)
      >= exact**steps * max_distance ** (bucket + 1 - exact)
    ):
      bucket += 1
  return bucket + (half if offset > 0 else 0)


@pytest.mark.parametrize("buckets,max_distance", [(32, 128), (16, 100)])
def test_buckets_equal_the_definition(buckets, max_distance):
  offsets = np.arange(-300, 301)
  result = relative_position_bucket(
    offsets, num_buckets=buckets, max_distance=max_distance
  )
  expected = [slow_bucket(int(n), buckets, max_distance) for n in offsets]
  np.testing.assert_array_equal(result, expected)
  assert set(result) == set(range(buckets)) - {buckets // 2}
