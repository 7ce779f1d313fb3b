"""The null prompt, and pytrees that pass through jit."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.types import Conditioning, TextEmbedding


def make_text(seed=0):
  tokens = np.random.default_rng(seed).normal(size=(3, 4, 5))
  mask = [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
  return TextEmbedding(
    jnp.asarray(tokens, jnp.float32), jnp.asarray(mask, bool)
  )


def test_drop_replaces_the_dropped_alone():
  text = make_text()
  dropped = text.drop(jnp.array([False, True, False]))
  kept = np.array([0, 2])
  np.testing.assert_array_equal(dropped.tokens[kept], text.tokens[kept])
  np.testing.assert_array_equal(dropped.mask[kept], text.mask[kept])
  np.testing.assert_array_equal(dropped.tokens[1], 0)
  np.testing.assert_array_equal(dropped.mask[1], [True, False, False, False])


def test_null_is_one_prompt_whatever_it_replaces():
  null, other = make_text(0).null_text(), make_text(1).null_text()
  np.testing.assert_array_equal(null.tokens, np.zeros((3, 4, 5)))
  np.testing.assert_array_equal(null.tokens, other.tokens)
  np.testing.assert_array_equal(null.mask, [[True, False, False, False]] * 3)


def test_null_keeps_the_types():
  text = make_text()
  null = text.replace(tokens=text.tokens.astype(jnp.bfloat16)).null_text()
  assert null.tokens.dtype == jnp.bfloat16
  assert null.mask.dtype == bool


def test_null_prompt_hides_what_is_not_finite():
  text = make_text()
  null = text.replace(tokens=jnp.full_like(text.tokens, jnp.nan)).null_text()
  assert jnp.isfinite(null.tokens).all()


def test_conditioning_passes_through_jit():
  cond = Conditioning(make_text(), aug_level=jnp.array([0.1, 0.2, 0.3]))
  out = jax.jit(lambda cond: cond.replace(aug_level=2 * cond.aug_level))(cond)
  assert out.lowres is None
  assert len(jax.tree.leaves(out)) == 3
  np.testing.assert_allclose(out.aug_level, [0.2, 0.4, 0.6], rtol=1e-6)
