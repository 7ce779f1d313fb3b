"""The paper's optimizers against optax's own and against arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.training import optimizers

PARAMS = {
  "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3))),
  "zeros": jnp.zeros((4, 3)),
}


# Its learning rate is 0.1 over the first few updates.
BRISK = {"learning_rate": 0.1, "warmup_steps": 0, "decay_steps": 10**9}


def gradients(step):
  rng = np.random.default_rng(step + 1)
  return {name: jnp.asarray(rng.normal(size=(4, 3))) for name in PARAMS}


def run(optimizer, steps=3):
  """Parameters after some steps."""
  params, state = PARAMS, optimizer.init(PARAMS)
  for step in range(steps):
    updates, state = optimizer.update(gradients(step), state, params)
    params = optax.apply_updates(params, updates)
  return params


def assert_same(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize(
  ("step", "expected"),
  [
    (0, 0.0),
    (1, 1e-8),
    (5_000, 0.5e-4),
    (10_000, 1e-4),
    (1_255_000, 0.5e-4),  # half way from the peak to the end
    (2_500_000, 0.0),
    (3_000_000, 0.0),
  ],
)
def test_learning_rate_is_the_papers(step, expected):
  rate = optimizers.Adam().schedule(step)
  np.testing.assert_allclose(rate, expected, rtol=1e-4, atol=1e-11)


def test_learning_rate_by_its_formula():
  settings = dict(learning_rate=3.0, warmup_steps=4, decay_steps=20)
  schedule = optimizers.Adafactor(**settings).schedule
  steps = np.arange(25)
  share = np.clip((steps - 4) / 16, 0, 1)
  expected = np.where(
    steps < 4, 3 * steps / 4, 1.5 * (1 + np.cos(np.pi * share))
  )
  np.testing.assert_allclose(
    [schedule(step) for step in steps], expected, atol=1e-6
  )


def test_warm_up_must_end_before_the_decay_does():
  with pytest.raises(ValueError, match="warmup_steps is 10000, expected fewer"):
    optimizers.Adam(decay_steps=10_000)
  with pytest.raises(ValueError, match="warmup_steps is -1"):
    optimizers.Adam(warmup_steps=-1)


def test_adafactor_is_optax_default():
  made = optimizers.Adafactor(**BRISK)
  assert_same(run(made), run(optax.adafactor(made.schedule)))


def test_adafactor_scaled_by_the_parameter_hardly_moves_a_zero():
  """Its RMS counts as 1e-3: the docstring's factor of a thousand."""
  moved = lambda **kw: run(optimizers.Adafactor(**BRISK, **kw), 1)
  scaled, plain = moved(), moved(multiply_by_parameter_scale=False)
  np.testing.assert_allclose(scaled["zeros"], 1e-3 * plain["zeros"], rtol=1e-4)
  assert np.abs(plain["zeros"]).mean() > 0.01


def test_adam_is_the_papers():
  """By its formula in float64: b1 .9, b2 .999, eps 1e-8, no weight decay."""
  value = {name: np.asarray(leaf, float) for name, leaf in PARAMS.items()}
  for name in value:
    m, v = 0.0, 0.0
    for step in range(3):
      g = np.asarray(gradients(step)[name], float)
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
      m_hat, v_hat = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
      value[name] -= 0.01 * m_hat / (np.sqrt(v_hat) + 1e-8)
  out = run(optimizers.Adam(**BRISK | {"learning_rate": 0.01}))
  for name in value:
    np.testing.assert_allclose(out[name], value[name], atol=1e-5)


def test_clipping_is_by_the_global_norm():
  """Before the moments: the first of Adam's is 0.1 of the gradient."""
  norm = float(optax.tree.norm(gradients(0)))

  def moment(clip_norm):
    made = optimizers.Adam(**BRISK, clip_norm=clip_norm)
    _, state = made.update(gradients(0), made.init(PARAMS), PARAMS)
    return optax.tree.get(state, "mu")

  for clip_norm in (0.5 * norm, 2 * norm, None):
    kept = min(norm, clip_norm or norm) / norm
    for name, g in gradients(0).items():
      found = moment(clip_norm)[name]
      np.testing.assert_allclose(found, 0.1 * kept * g, rtol=1e-5)


def test_a_norm_to_clip_to_is_positive():
  with pytest.raises(ValueError, match="^clip_norm is 0, expected more than 0"):
    optimizers.Adam(clip_norm=0)
