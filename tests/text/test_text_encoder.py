"""TextEncoder: order, independence of the batch, shapes, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.parallel.mesh import MeshShape, batch_sharding, make_mesh
from imagen_jax.progress import compilations
from imagen_jax.text.encoder import Embedder, TextEncoder
from imagen_jax.text.tokenizer import Tokenizer

PROMPTS = [
  "two red circles above a blue square",
  "a star",
  "three green triangles",
  "a yellow square below a purple star on a red background",
  "a blue circle",
]


def make_encoder(vocabulary):
  module = T5Encoder(
    vocab_size=192,
    emb_dim=24,
    num_heads=2,
    num_encoder_layers=1,
    head_dim=8,
    mlp_dim=32,
  )
  ids = jnp.zeros((1, 4), jnp.int32)
  params = jax.jit(module.init)(jax.random.key(0), ids, ids)["params"]
  tokenizer = Tokenizer(vocabulary, 24)
  encoder = TextEncoder(Embedder(module), params, tokenizer, 3)
  return encoder, module, params, tokenizer


@pytest.fixture(scope="module")
def made(vocabulary):
  return make_encoder(vocabulary)


def test_prompts_come_back_in_order(made):
  encoder, module, params, tokenizer = made
  text = encoder(PROMPTS)
  ids, mask = tokenizer(PROMPTS)
  expected = jax.jit(module.apply)({"params": params}, ids, mask)
  assert text.tokens.shape == (5, encoder.length, encoder.dim) == (5, 24, 24)
  assert text.tokens.dtype == jnp.float32 and text.mask.dtype == jnp.bool_
  np.testing.assert_allclose(text.tokens, expected, rtol=0, atol=1e-5)
  np.testing.assert_array_equal(text.mask, mask)


def test_a_prompt_does_not_depend_on_the_others(made):
  encoder = made[0]
  raise_together = encoder(PROMPTS).tokens
  alone = jnp.concatenate([encoder([prompt]).tokens for prompt in PROMPTS])
  np.testing.assert_allclose(raise_together, alone, rtol=0, atol=1e-6)


def test_prompts_are_encoded_where_their_rows_are(made, monkeypatch):
  """By 4 groups of devices, equal prompts of a group once; then to the host."""
  encoder, module, params, tokenizer = made
  expected = encoder(PROMPTS)
  rows = batch_sharding(make_mesh(MeshShape(data=2, fsdp=2, tensor=2)), 8)
  encoder = TextEncoder(Embedder(module, null="empty"), params, tokenizer, 3)
  encode, passes = encoder._encode, []

  def note(ids, mask, rows):
    passes.append(ids.shape[0] if rows else None)
    return encode(ids, mask, rows)

  monkeypatch.setattr(encoder, "_encode", note)
  order = [0, 1, 2, 2, 3, 3, 4, 4]
  text = encoder([PROMPTS[i] for i in order], rows)
  assert passes == [4, 4, None]  # two prompts of a group, and the null text
  np.testing.assert_allclose(
    text.tokens, expected.tokens[order], rtol=0, atol=1e-5
  )
  np.testing.assert_array_equal(text.mask, expected.mask[order])
  assert text.null.tokens.shape == text.tokens.shape
  passes.clear()
  encoder([PROMPTS[0]] * 8, rows)
  assert passes == [4]


def test_one_program_serves_every_number_of_prompts(made):
  encoder, module, params, tokenizer = made
  encoder(PROMPTS)
  another = TextEncoder(Embedder(module), params, tokenizer, 3)
  with compilations() as found:
    for n in (1, 2, 3, 4):
      encoder(PROMPTS[:n])
      another(PROMPTS[:n])
  assert found.count == 0


def test_padding_may_be_seen_by_nets_but_never_by_the_encoder(made):
  encoder, module, params, tokenizer = made
  seen = TextEncoder(Embedder(module, True), params, tokenizer, 3)(PROMPTS)
  np.testing.assert_array_equal(seen.tokens, encoder(PROMPTS).tokens)
  assert seen.mask.shape == (5, 24) and seen.mask.dtype == bool
  assert seen.mask.all() and seen.null is None


@pytest.mark.parametrize("attend_padding", [False, True])
def test_the_null_may_be_the_empty_prompt(made, attend_padding):
  encoder, module, params, tokenizer = made
  assert encoder(PROMPTS).null is None
  embedder = Embedder(module, attend_padding, "empty")
  encoder = TextEncoder(embedder, params, tokenizer, 3)
  text = encoder(PROMPTS)
  ids, mask = np.zeros((1, 24), np.int32), np.zeros((1, 24), bool)
  ids[0, 0], mask[0, 0] = 1, True
  expected = jax.jit(module.apply)({"params": params}, ids, mask)
  assert text.null.tokens.shape == text.tokens.shape
  np.testing.assert_allclose(text.null.tokens, expected.repeat(5, 0), atol=1e-5)
  mask[:] |= attend_padding
  np.testing.assert_array_equal(text.null.mask, mask.repeat(5, 0))
  assert text.null.null is None
  np.testing.assert_array_equal(text.null_text().tokens, text.null.tokens)
  with pytest.raises(ValueError, match="prompt 0 is empty"):
    encoder([""])


def test_the_empty_prompt_is_encoded_once(made, monkeypatch):
  _, module, params, tokenizer = made
  embedder = Embedder(module, null="empty")
  encoder, calls = TextEncoder(embedder, params, tokenizer, 3), []
  apply = encoder._apply
  count = lambda *args: calls.append(args) or apply(*args)
  monkeypatch.setattr(encoder, "_apply", count)
  for n in (1, 4, 2):
    encoder(PROMPTS[:n])
  assert len(calls) == 1 + 1 + 2 + 1


def test_a_null_of_another_kind_is_refused(made):
  with pytest.raises(ValueError, match="^null is 'x', expected 'zeros' or 'em"):
    Embedder(made[1], null="x")


def test_unusable_prompts_are_refused(made):
  encoder = made[0]
  with pytest.raises(ValueError, match="there are no prompts"):
    encoder([])
  with pytest.raises(ValueError, match="prompt 1 is empty"):
    encoder(["a star", ""])
  with pytest.raises(ValueError, match="one string, expected a list"):
    encoder("a star")


def test_vocabulary_larger_than_the_encoders_is_refused(made):
  _, module, params, tokenizer = made
  small = module.clone(vocab_size=100)
  with pytest.raises(ValueError, match=r"160 pieces, .* embeds only 100"):
    TextEncoder(Embedder(small), params, tokenizer, 3)


def test_batch_size_zero_is_refused(made):
  _, module, params, tokenizer = made
  with pytest.raises(ValueError, match="text batch size is 0"):
    TextEncoder(Embedder(module), params, tokenizer, 0)
