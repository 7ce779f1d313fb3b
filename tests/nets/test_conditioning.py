"""Pooling of the text, the embedding vector and the low-res input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.nets import conditioning
from imagen_jax.types import Conditioning, TextEmbedding

MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
DIM = 8


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_text(seed=0, tokens=None):
  tokens = normal(3, 4, DIM, seed=seed) if tokens is None else tokens
  return TextEmbedding(jnp.asarray(tokens), jnp.asarray(MASK))


def slow_layer_norm(tokens, params):
  t = tokens - tokens.mean(-1, keepdims=True)
  t = t / np.sqrt((t**2).mean(-1, keepdims=True) + 1e-5)
  return t * params["scale"] + params["bias"]


def slow_mean(tokens, mask):
  real = [token for token, keep in zip(tokens, mask, strict=True) if keep]
  return np.mean(real, axis=0) if real else np.zeros(tokens.shape[-1])


def slow_attention_pooling(tokens, mask, params, heads):
  """One example: the mean token attends to itself and to the real tokens."""
  tokens = slow_layer_norm(tokens, params["norm_in"])
  query = slow_mean(tokens, mask) + params["cls_pos"][0]
  keys = [query] + [t for t, keep in zip(tokens, mask, strict=True) if keep]
  dense = lambda name, h: (
    np.tensordot(h, params[name]["kernel"], 1) + params[name]["bias"]
  )
  pooled = []
  for head in range(heads):
    q = dense("query", query)[head]
    k, v = (dense(name, np.stack(keys))[:, head] for name in ("key", "value"))
    weights = np.exp(k @ q / len(q) ** 0.5)
    pooled.append(weights / weights.sum() @ v)
  return np.concatenate(pooled)


def test_mean_of_real():
  text = make_text()
  out = conditioning.mean_of_real(text.tokens, text.mask)
  expected = [slow_mean(*row) for row in zip(*jax.tree.leaves(text))]
  np.testing.assert_allclose(out, expected, atol=1e-6)
  np.testing.assert_array_equal(out[2], 0)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_pooling_equals_a_loop(heads, random_params):
  text = make_text()
  module = conditioning.AttentionPooling(head_dim=DIM // heads)
  params = random_params(module, text)
  out = module.apply({"params": params}, text)
  params = jax.tree.map(np.asarray, params)
  expected = [
    slow_attention_pooling(tokens, mask, params, heads)
    for tokens, mask in zip(np.asarray(text.tokens), MASK, strict=True)
  ]
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_attention_pooling_refuses_a_width_its_heads_do_not_fill():
  module, text = conditioning.AttentionPooling(head_dim=DIM - 1), make_text()
  with pytest.raises(
    ValueError, match=f"width {DIM} cannot be pooled by heads"
  ):
    jax.eval_shape(module.init, jax.random.key(0), text)


def test_mean_pooling_equals_a_loop(random_params):
  text = make_text()
  module = conditioning.MeanPooling()
  params = random_params(module, text)
  out = module.apply({"params": params}, text)
  tokens = slow_layer_norm(
    np.asarray(text.tokens), jax.tree.map(np.asarray, params["norm_in"])
  )
  expected = [slow_mean(*row) for row in zip(tokens, MASK, strict=True)]
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_text_pooling_by_name():
  pooling = lambda name: conditioning.text_pooling(name, 64, jnp.float32)
  assert isinstance(pooling("attention"), conditioning.AttentionPooling)
  assert isinstance(pooling("mean"), conditioning.MeanPooling)
  with pytest.raises(ValueError, match="'max', expected one of 'attention'"):
    pooling("max")


@pytest.fixture(scope="module")
def combine(random_params):
  module = conditioning.CombineEmbs(
    features=8, width=16, feature_pooling_type="attention"
  )
  time, aug_level = jnp.array([0.0, 500.0, 1000.0]), jnp.array([0.0, 0.2, 1.0])
  cond = Conditioning(make_text(), aug_level=aug_level)
  params = random_params(module, time, cond)
  apply = jax.jit(
    lambda params, *inputs: module.apply({"params": params}, *inputs)
  )
  return apply, params, time, cond


def test_aug_level_is_a_level_like_time(combine):
  """With like MLPs, (time, aug) and (1000 aug, time / 1000) are the same."""
  apply, params, time, cond = combine
  params = {**params, "aug_mlp": params["time_mlp"]}
  out = apply(params, time, cond)
  swapped = cond.replace(aug_level=time / 1000)
  np.testing.assert_allclose(
    apply(params, 1000 * cond.aug_level, swapped), out, atol=1e-4
  )
  assert np.abs(apply(params, time, swapped) - out)[1].max() > 1e-2


def test_the_embedding_is_a_sum_of_parts(combine):
  """swish(time + aug + LayerNorm(text_proj(pooling)))."""
  apply, params, time, cond = combine
  part = conditioning.LevelEmbedding(8, 16)
  level = lambda name, value: part.apply({"params": params[name]}, value)
  pooled = conditioning.AttentionPooling().apply(
    {"params": params["text_pool"]}, cond.text
  )
  proj = params["text_proj"]
  text = slow_layer_norm(
    np.asarray(pooled @ proj["kernel"] + proj["bias"]), params["text_norm_out"]
  )
  total = level("time_mlp", time) + level("aug_mlp", 1000 * cond.aug_level)
  total = np.asarray(total + text)
  expected = total / (1 + np.exp(-total))
  np.testing.assert_allclose(apply(params, time, cond), expected, atol=1e-4)


def test_without_text_and_low_res_nothing_is_made_for_them():
  module = conditioning.CombineEmbs(8, 16, "attention")
  init = jax.eval_shape(
    module.init, jax.random.key(0), jnp.zeros(3), Conditioning()
  )
  assert set(init["params"]) == {"time_mlp"}


def test_level_embedding_is_a_two_layer_mlp(random_params):
  module = conditioning.LevelEmbedding(features=8, width=16)
  level = jnp.array([0.0, 3.0, 1000.0])
  params = random_params(module, level)
  out = module.apply({"params": params}, level)
  dense = lambda name, h: h @ params[name]["kernel"] + params[name]["bias"]
  h = dense("dense_0", conditioning.sinusoid(level, 8))
  expected = dense("dense_1", h / (1 + np.exp(-h)))
  np.testing.assert_allclose(out, expected, atol=1e-5)
  assert out.shape == (3, 16)


def test_project_text(random_params):
  module = conditioning.ProjectText(width=5)
  assert module.apply({}, None) is None
  text = make_text()
  params = random_params(module, text)
  out = module.apply({"params": params}, text)
  kernel, bias = params["dense"]["kernel"], params["dense"]["bias"]
  np.testing.assert_allclose(out.tokens, text.tokens @ kernel + bias, atol=1e-5)
  np.testing.assert_array_equal(out.mask, MASK)


def test_low_res_comes_after_z_and_is_enlarged_smoothly():
  z = jnp.asarray(normal(2, 16, 16, 3))
  assert conditioning.with_lowres(z, None) is z
  row = np.linspace(-1, 1, 4)
  lowres = np.broadcast_to(row[None, :, None, None], (2, 4, 4, 3))
  out = np.asarray(conditioning.with_lowres(z, jnp.asarray(lowres)))
  np.testing.assert_array_equal(out[..., :3], z)
  # Pixel centres: a ramp from -1 to 1 has slope 2/3 per low-res pixel. Cubic
  # keeps a ramp where all its taps are inside; nearest would make steps.
  ramp = -1 + 2 / 3 * ((np.arange(16) + 0.5) / 4 - 0.5)
  inside = slice(6, 10)
  expected = np.broadcast_to(ramp[None, :, None, None], (2, 16, 16, 3))
  np.testing.assert_allclose(
    out[:, inside, :, 3:], expected[:, inside], atol=1e-5
  )


def test_low_res_is_enlarged_bicubically():
  """An impulse overshoots: bilinear and nearest have no negative lobe."""
  lowres = np.zeros((1, 8, 8, 1), np.float32)
  lowres[0, 4, 4] = 1.0
  out = conditioning.with_lowres(jnp.zeros((1, 32, 32, 3)), lowres)[..., 3]
  assert -0.1 < out.min() < -0.05
