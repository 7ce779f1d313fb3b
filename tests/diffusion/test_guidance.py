"""Guidance and thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import gaussian, guidance


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_weights_one_and_zero():
  cond, uncond = normal(2, 3, 4, 4, 3)
  np.testing.assert_array_equal(guidance.guide(cond, uncond, 1.0), cond)
  np.testing.assert_array_equal(guidance.guide(cond, uncond, 0.0), uncond)


def test_weight_extrapolates():
  cond, uncond = jnp.full((1, 2), 3.0), jnp.full((1, 2), 2.0)
  np.testing.assert_allclose(guidance.guide(cond, uncond, 5.0), [[7.0, 7.0]])


def test_weight_per_example_where_batch_equals_channels():
  cond, uncond = normal(2, 3, 2, 2, 3)
  w = jnp.array([0.0, 1.0, 7.5])
  guided = guidance.guide(cond, uncond, w)
  for i in range(3):
    alone = guidance.guide(cond[i : i + 1], uncond[i : i + 1], w[i])
    np.testing.assert_array_equal(guided[i : i + 1], alone)


@pytest.mark.parametrize("prediction", [gaussian.EPS, gaussian.V])
def test_guiding_x_hat_is_guiding_the_output(prediction):
  z, cond, uncond = normal(3, 5, 4, 3)
  logsnr = jnp.linspace(-4.0, 8.0, 5)
  to_x = prediction.to_x
  guided_x = guidance.guide(to_x(cond, z, logsnr), to_x(uncond, z, logsnr), 7.0)
  guided_out = guidance.guide(cond, uncond, 7.0)
  expected = to_x(guided_out, z, logsnr)
  np.testing.assert_allclose(guided_x, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescale_moves_the_width_by_phi(phi):
  """std(x') = phi std(cond) + (1 - phi) std(guided), each example its own."""
  scale = np.array([1.0, 5.0, 0.2])[:, None, None, None]
  cond, guided = normal(3, 8, 8, 3), scale * normal(3, 8, 8, 3, seed=1) + 2
  found = guidance.rescale(jnp.array(guided), jnp.array(cond), phi)
  std = lambda x: np.std(x, (1, 2, 3))
  expected = phi * std(cond) + (1 - phi) * std(guided)
  np.testing.assert_allclose(std(found), expected, rtol=1e-5)
  ratio = np.asarray(found) / guided  # one number for all of an example
  np.testing.assert_allclose(ratio, ratio[:, :1, :1, :1] + 0 * ratio, rtol=1e-4)


def test_rescale_leaves_one_colour_and_no_guidance():
  flat, x = jnp.full((1, 4, 4, 3), 0.5), jnp.array(normal(1, 4, 4, 3))
  np.testing.assert_allclose(guidance.rescale(flat, x, 0.7), flat)
  np.testing.assert_allclose(guidance.rescale(x, x, 0.7), x, rtol=1e-6)


def test_within_includes_its_ends():
  logsnr = jnp.array([-1.1, -1.0, 0.0, 2.5, 2.6])
  found = guidance.within(logsnr, (-1.0, 2.5))
  assert found.tolist() == [False, True, True, True, False]


def test_none_and_static():
  x = jnp.array([[-3.0, -0.5, 0.0, 1.0, 1.5]])
  np.testing.assert_array_equal(guidance.NoThreshold()(x), x)
  np.testing.assert_array_equal(
    guidance.static_threshold(x), [[-1.0, -0.5, 0.0, 1.0, 1.0]]
  )


def test_dynamic_is_static_where_the_percentile_is_within_one():
  x = np.clip(normal(2, 16, 16, 3), -0.9, 0.9)
  x[:, 0, :3] = 4.0  # Outliers, fewer than 5 %: the clip must still bind.
  dynamic = guidance.dynamic_threshold(x, 95.0)
  np.testing.assert_array_equal(dynamic, guidance.static_threshold(x))
  assert np.max(dynamic) == 1


def test_dynamic_against_numpy_per_example_for_batch_three():
  """B == C == 3: a bare [B] threshold would broadcast over the channels."""
  x = normal(3, 8, 8, 3) * np.float32([0.1, 2, 9])[:, None, None, None]
  x *= np.float32([1, 2, 4])
  thresholded = guidance.dynamic_threshold(x, 99.5)
  for i in range(3):
    s = max(1.0, np.percentile(np.abs(np.float64(x[i])), 99.5))
    expected = np.clip(x[i], -s, s) / s
    np.testing.assert_allclose(thresholded[i], expected, rtol=1e-5, atol=1e-7)
    alone = guidance.dynamic_threshold(x[i : i + 1], 99.5)
    np.testing.assert_allclose(thresholded[i : i + 1], alone, rtol=1e-6)
  assert np.max(np.abs(thresholded)) <= 1


INF, NAN = np.inf, np.nan
TINY = np.float32(1e-45)  # the least float32 above zero


@pytest.mark.parametrize(
  "values",
  [
    [0.0] * 8,
    [-0.0, 0.0, 1e-38, -1e-38],
    [TINY, -2 * TINY, 3 * TINY, 0.0, 5 * TINY],
    [-2.0, 2.0, 2.0, -2.0, 1.0, 1.0, 7.0],
    [3.0],
    [1.0, -INF, 2.0, INF, 0.5],
    [1.0, NAN, 2.0],
    [-NAN, INF, 2.0],
    [3.4e38, -3.4e38, 1.0],
    np.random.default_rng(0).normal(size=3 * 7 * 5).tolist(),
    np.random.default_rng(1).integers(-4, 4, 200).tolist(),
  ],
  ids=str,
)
def test_percentile_is_jaxs(values):
  """It equals a sort's, also on ties, infinities, NaN and denormals."""
  x = jnp.array([values, values[::-1]], jnp.float32)
  find = jax.jit(guidance.percentile_of_abs)
  for p in (0.0, 0.5, 1.5, 25.0, 50.0, 66.7, 90.0, 99.5, 99.99, 100.0):
    want = jnp.percentile(jnp.abs(x), p, axis=1, keepdims=True)
    np.testing.assert_allclose(find(x, p), want, rtol=2e-7, atol=0, err_msg=p)


def test_dynamic_threshold_does_not_sort():
  x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  text = jax.jit(guidance.dynamic_threshold).lower(x).as_text()
  assert "while" in text
  assert "sort" not in text


def test_percentile_is_on_the_scale_of_a_hundred():
  x = jnp.arange(1.0, 1001.0)[None]
  assert guidance.dynamic_threshold(x, 100.0)[0, -1] == 1
  # The median is about 500, not the half of one percent.
  np.testing.assert_allclose(
    guidance.dynamic_threshold(x, 50.0)[0, 99], 100 / 500.5, rtol=1e-6
  )


def test_default_percentile_is_the_papers():
  x = 3 * normal(2, 16, 16, 3)
  np.testing.assert_array_equal(
    guidance.dynamic_threshold(x), guidance.dynamic_threshold(x, 99.5)
  )
  assert guidance.DynamicThreshold().p == 99.5


@pytest.mark.parametrize("p", [-0.1, 0, 0.995, 1, 100.5, float("nan")])
def test_percentile_out_of_range(p):
  """A share, of 0 to 1, would be the static threshold bit for bit."""
  said = "^threshold p is .*, expected a percentile above 1 and at most 100"
  with pytest.raises(ValueError, match=said):
    guidance.dynamic_threshold(jnp.ones((1, 2)), p)
  with pytest.raises(ValueError, match=said):
    guidance.DynamicThreshold(p)


def test_a_cap_bounds_what_the_percentile_asks_for():
  """Between 1 and the cap nothing changes; a cap of 1 is the static clip."""
  x = normal(3, 16, 16, 3) * np.float32([0.1, 0.6, 9])[:, None, None, None]
  capped = guidance.DynamicThreshold(95.0, cap=1.5)(x)
  free = guidance.dynamic_threshold(x, 95.0)
  np.testing.assert_array_equal(capped[:2], free[:2])
  expected = np.clip(x[2], -1.5, 1.5) / 1.5
  np.testing.assert_allclose(capped[2], expected, rtol=1e-6)
  assert 1 < np.percentile(np.abs(x[1]), 95) < 1.5
  np.testing.assert_array_equal(
    guidance.dynamic_threshold(x, 95.0, 1.0), guidance.static_threshold(x)
  )


@pytest.mark.parametrize("cap", [0.5, -1.0, float("nan")])
def test_cap_below_one(cap):
  with pytest.raises(ValueError, match=r"cap is .*, expected at least 1"):
    guidance.DynamicThreshold(cap=cap)
  with pytest.raises(ValueError, match=r"cap is .*, expected at least 1"):
    guidance.dynamic_threshold(jnp.ones((1, 2)), cap=cap)


def test_dynamic_threshold_is_a_static_setting():
  apply = jax.jit(lambda x, threshold: threshold(x), static_argnums=1)
  x = 3 * normal(2, 4, 4, 3)
  np.testing.assert_allclose(
    apply(x, guidance.DynamicThreshold(90.0)),
    guidance.dynamic_threshold(x, 90.0),
    rtol=1e-6,
  )
  assert hash(guidance.DynamicThreshold(90)) == hash(
    guidance.DynamicThreshold(90)
  )


def test_half_precision_goes_in_float32_comes_out():
  x = jnp.ones((2, 4), jnp.bfloat16)
  results = [
    guidance.guide(x, x, 3.0),
    guidance.NoThreshold()(x),
    guidance.static_threshold(x),
    guidance.dynamic_threshold(x),
  ]
  assert {result.dtype for result in results} == {jnp.dtype("float32")}
