"""The leaves of both U-Nets against loops in numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.nets import layers
from imagen_jax.types import TextEmbedding

MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax_of_some(logits, keep):
  """Softmax of the kept entries of one row, by its definition."""
  weights = [np.exp(v) if k else 0.0 for v, k in zip(logits, keep, strict=True)]
  return np.array(weights) / (sum(weights) or 1.0)


def slow_attend(query, key, value, mask):
  out = np.zeros((*query.shape[:3], value.shape[-1]))
  for b, n, h in np.ndindex(query.shape[:3]):
    logits = [query[b, n, h] @ k / len(k) ** 0.5 for k in key[b, :, h]]
    out[b, n, h] = softmax_of_some(logits, mask[b]) @ value[b, :, h]
  return out


def test_sinusoid_is_cosines_then_sines():
  level = np.array([0.0, 0.5, 37.0, 1000.0])
  expected = np.zeros((4, 10))
  for b, i in np.ndindex(4, 5):
    angle = level[b] / 10_000 ** (i / 5)
    expected[b, i], expected[b, 5 + i] = np.cos(angle), np.sin(angle)
  out = layers.sinusoid(jnp.asarray(level), 10)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, expected, atol=2e-4)


def test_sinusoid_of_half_precision_or_integers_is_not_coarse():
  """bfloat16 has 8 bits: its cos(501) would be that of 500 or 502."""
  expected = layers.sinusoid(jnp.array([500.0]), 8)
  for dtype in (jnp.bfloat16, jnp.int32):
    out = layers.sinusoid(jnp.array([500], dtype), 8)
    np.testing.assert_array_equal(out, expected)


def test_downsample_is_the_mean_of_windows():
  x = normal(2, 4, 6, 3)
  expected = np.zeros((2, 2, 3, 3))
  for b, i, j in np.ndindex(2, 2, 3):
    window = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
    expected[b, i, j] = window.mean(axis=(0, 1))
  np.testing.assert_allclose(layers.downsample(x), expected, atol=1e-6)


def test_upsample_repeats_the_nearest_pixel():
  x = normal(2, 3, 4, 3)
  out = np.asarray(layers.upsample(jnp.asarray(x)))
  assert out.shape == (2, 6, 8, 3)
  for i, j in np.ndindex(out.shape[1:3]):
    np.testing.assert_array_equal(out[:, i, j], x[:, i // 2, j // 2])


@pytest.mark.parametrize("factor", [(2, 2), (1, 2), (3, 1)])
def test_depth_to_space_lays_channels_out_as_pixels(factor):
  """Row by row of a pixel's square, the C channels of one place together."""
  fh, fw = factor
  x = normal(2, 3, 4, fh * fw * 5)
  out = np.asarray(layers.depth_to_space(jnp.asarray(x), factor))
  assert out.shape == (2, 3 * fh, 4 * fw, 5)
  for i, j in np.ndindex(out.shape[1:3]):
    first = ((i % fh) * fw + j % fw) * 5
    expected = x[:, i // fh, j // fw, first : first + 5]
    np.testing.assert_array_equal(out[:, i, j], expected)


def test_masked_softmax_is_the_softmax_of_the_kept():
  logits = normal(3, 4)
  out = layers.masked_softmax(jnp.asarray(logits), jnp.asarray(MASK))
  expected = [softmax_of_some(*row) for row in zip(logits, MASK, strict=True)]
  np.testing.assert_allclose(out, expected, atol=1e-6)
  np.testing.assert_array_equal(np.asarray(out)[~MASK], 0)


def test_masked_softmax_of_huge_logits_and_of_no_key_is_finite():
  logits, mask = 1e6 * normal(3, 4), jnp.asarray(MASK)
  loss = lambda v: (layers.masked_softmax(v, mask) * normal(3, 4, seed=1)).sum()
  out = layers.masked_softmax(logits, mask)
  np.testing.assert_allclose(out.sum(-1), [1, 1, 0], atol=1e-6)
  gradient = jax.grad(loss)(jnp.asarray(logits))
  assert jnp.isfinite(gradient).all()
  np.testing.assert_array_equal(np.asarray(gradient)[~MASK], 0)


def test_masked_softmax_is_float32_inside():
  logits = jnp.asarray(normal(3, 64), jnp.bfloat16)
  out = layers.masked_softmax(logits, jnp.ones((3, 64), bool))
  assert out.dtype == jnp.float32
  expected = jax.nn.softmax(logits.astype(jnp.float32))
  np.testing.assert_allclose(out, expected, atol=1e-6)


def test_attend_equals_a_loop():
  query = normal(3, 5, 2, 8)
  key, value = normal(2, 3, 4, 2, 8, seed=1)
  arrays = map(jnp.asarray, (query, key, value, MASK))
  out = layers.attend(*arrays)
  expected = slow_attend(query, key, value, MASK)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  np.testing.assert_array_equal(out[2], 0)


@pytest.mark.parametrize("norm", [layers.group_norm(2), layers.layer_norm()])
def test_norms_have_float32_statistics(norm):
  """With an offset that leaves bfloat16 no digits for the variance."""
  x = jnp.asarray(20 + normal(2, 4, 4, 8), jnp.bfloat16)
  out, _ = norm.init_with_output(jax.random.key(0), x)
  assert out.dtype == jnp.float32
  exact = np.asarray(x, np.float64)
  if isinstance(norm, layers.GroupNorm):
    exact = exact.reshape(2, 4, 4, 2, 4)
  axes = (1, 2, 4) if isinstance(norm, layers.GroupNorm) else (3,)
  mean, var = exact.mean(axes, keepdims=True), exact.var(axes, keepdims=True)
  expected = ((exact - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
  np.testing.assert_allclose(out, expected, atol=2e-3)


@pytest.mark.parametrize(
  ("norm", "groups"), [(layers.group_norm(2), 2), (layers.layer_norm(), None)]
)
def test_norms_of_values_far_from_zero(norm, groups):
  """Against float64, at |mean| / std = 100: one pass is 1.5e-2 off there."""
  x = jnp.asarray(100 + normal(2, 4, 4, 64), jnp.float32)
  out, _ = norm.init_with_output(jax.random.key(0), x)
  exact = np.asarray(x, np.float64)
  if groups:
    exact, axes = exact.reshape(2, 4, 4, groups, -1), (1, 2, 4)
  else:
    axes = 3
  mean, var = exact.mean(axes, keepdims=True), exact.var(axes, keepdims=True)
  expected = ((exact - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
  np.testing.assert_allclose(out, expected, atol=2e-4)


@pytest.mark.parametrize("shape", [(2, 4, 3, 8), (3, 5, 8), (8, 2, 2, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_norm_and_its_gradient_are_flaxs(shape, dtype):
  """The written-out gradient against a derived one, with modulation."""
  x = jnp.asarray(3 + normal(*shape), dtype)
  modulation = jnp.asarray(normal(2, shape[0], 8, seed=1))
  params = {
    "scale": jnp.asarray(normal(8, seed=2)),
    "bias": jnp.asarray(normal(8, seed=3)),
  }
  weight = normal(*shape, seed=4)
  theirs = nn.GroupNorm(
    4, epsilon=1e-5, dtype=jnp.float32, use_fast_variance=False
  )

  def expected(params, x, modulation):
    scale, shift = (
      m.reshape(shape[0], *(1,) * (x.ndim - 2), 8) for m in modulation
    )
    y = theirs.apply({"params": params}, x) * (1 + scale) + shift
    return (y * weight).sum(), y

  def found(params, x, modulation):
    y = layers.group_norm(4).apply({"params": params}, x, tuple(modulation))
    return (y * weight).sum(), y

  differ = lambda fn: jax.grad(fn, (0, 1, 2), has_aux=True)
  pairs = zip(
    *(
      jax.tree.leaves(differ(fn)(params, x, modulation))
      for fn in (found, expected)
    ),
    strict=True,
  )
  for ours, flaxs in pairs:
    assert ours.dtype == flaxs.dtype
    tolerance = 1e-5 if ours.dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(
      np.float32(ours), np.float32(flaxs), rtol=tolerance, atol=tolerance
    )


def test_group_norm_of_groups_that_do_not_divide():
  with pytest.raises(
    ValueError,
    match="^norm_groups is 3, expected a divisor of 8, the channels of a layer",
  ):
    layers.group_norm(3).init(jax.random.key(0), jnp.ones((1, 2, 8)))


@pytest.mark.parametrize(
  ("self_attention", "with_text"), [(True, True), (True, False), (False, True)]
)
def test_attention_is_one_softmax_over_pixels_and_text(
  self_attention, with_text, random_params
):
  """The whole module in numpy: norms, projections, loops, residual sum."""
  text = TextEmbedding(jnp.asarray(normal(3, 4, 6)), jnp.asarray(MASK))
  text = text if with_text else None
  module = layers.Attention(
    num_heads=2, head_dim=4, groups=4, self_attention=self_attention
  )
  x = normal(3, 2, 3, 8)
  params = random_params(module, x, text)
  dense = lambda name, h: (
    np.tensordot(h, params[name]["kernel"], 1) + params[name]["bias"]
  )
  affine = lambda name, h: h * params[name]["scale"] + params[name]["bias"]
  h = x.reshape(3, 6, 4, 2)
  mean, var = h.mean((1, 3), keepdims=True), h.var((1, 3), keepdims=True)
  h = affine("norm", ((h - mean) / np.sqrt(var + 1e-5)).reshape(3, 6, 8))
  key, value, mask = [], [], []
  if self_attention:
    key, value = [dense("key", h)], [dense("value", h)]
    mask = [np.ones((3, 6), bool)]
  if with_text:
    t = np.asarray(text.tokens)
    t = t - t.mean(-1, keepdims=True)
    t = affine("norm_text", t / np.sqrt(t.var(-1, keepdims=True) + 1e-5))
    key, value = key + [dense("text_key", t)], value + [dense("text_value", t)]
    mask = mask + [MASK]
  key, value, mask = (np.concatenate(a, 1) for a in (key, value, mask))
  attended = slow_attend(dense("query", h), key, value, mask)
  out = np.tensordot(attended, params["out"]["kernel"], 2)
  expected = x + (out + params["out"]["bias"]).reshape(x.shape)

  out = module.apply({"params": params}, jnp.asarray(x), text)
  np.testing.assert_allclose(out, expected, atol=2e-5)


class Counting(nn.Module):
  """Doubles the text, and counts how often it had to."""

  calls: object

  @nn.compact
  def __call__(self, text):
    def fn():
      self.calls.add(len(self.calls))
      return 2 * text

    return layers.once_per_prompt(self, "doubled", fn)


class Calls(set):
  __hash__ = object.__hash__


def test_once_per_prompt_keeps_and_reads_only_when_asked():
  calls = Calls()
  module, text = Counting(calls), jnp.array([1.0, 2.0])
  assert module.init(jax.random.key(0), text) == {}
  plain = module.apply({}, text)
  out, kept = module.apply({}, text, mutable=["text"])
  assert len(calls) == 3
  again = module.apply(kept, jnp.full(2, jnp.nan))
  assert len(calls) == 3
  for value in (plain, out, again):
    np.testing.assert_array_equal(value, [2.0, 4.0])


def test_attention_maps_are_not_kept_for_the_backward_pass():
  """They are the largest arrays of a U-Net; what is kept has no N x M."""
  n, m = 50, 70
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  args = shape(2, n, 3, 4), shape(2, m, 3, 4), shape(2, m, 3, 4)
  mask = np.ones((2, m), bool)
  backward = jax.eval_shape(
    lambda *args: jax.vjp(lambda *qkv: layers.attend(*qkv, mask), *args)[1],
    *args,
  )
  kept = [leaf.shape for leaf in jax.tree.leaves(backward)]
  assert kept and not [each for each in kept if n in each and m in each]
