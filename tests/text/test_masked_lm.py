"""Masked language modelling: what is hidden, packed, and can be learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.text import masked_lm
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.text.vocabulary import train_vocabulary

CAPTIONS = [
  [f"a {color} {shape}", f"one {shape} which is {color}"]
  for color in ("red", "green", "blue")
  for shape in ("circle", "square")
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
  train_vocabulary([c for pair in CAPTIONS for c in pair], path, vocab_size=100)
  return Tokenizer(path, 12)


def test_pair_packs_two_captions_of_one_picture(tokenizer):
  ids, mask = masked_lm.pair(tokenizer, CAPTIONS, np.random.default_rng(0))
  assert ids.shape == mask.shape == (len(CAPTIONS), 24)
  for row, real, (first, second) in zip(ids, mask, CAPTIONS):
    orders = []
    for texts in ((first, second), (second, first)):
      packed, there = tokenizer(list(texts))
      orders.append(packed[there].tolist())
    assert row[real].tolist() in orders
    assert real[: real.sum()].all(), "padding in the middle"
    assert (row[~real] == 0).all()


def test_corrupt_hides_a_quarter_of_the_words_and_no_special():
  ids = jnp.tile(jnp.arange(50), (400, 1))
  corrupted, chosen = masked_lm.corrupt(jax.random.key(0), ids, hidden_id=50)
  assert not chosen[:, : masked_lm.FIRST_WORD].any()
  np.testing.assert_array_equal(corrupted[~chosen], ids[~chosen])
  share = chosen[:, masked_lm.FIRST_WORD :].mean()
  np.testing.assert_allclose(share, masked_lm.CHOSEN, atol=0.01)
  hidden = (corrupted == 50)[chosen].mean()
  np.testing.assert_allclose(hidden, masked_lm.HIDDEN, atol=0.02)
  kept = (corrupted == ids)[chosen].mean()
  expected = 1 - masked_lm.HIDDEN - masked_lm.REPLACED
  np.testing.assert_allclose(kept, expected, atol=0.02)
  assert corrupted.min() >= 0 and corrupted.max() == 50


def test_loss_counts_chosen_tokens_only_and_ignores_padding(tokenizer):
  encoder = T5Encoder(tokenizer.vocab_size + 1, 8, 2, 1, 4, 8)
  ids, mask = masked_lm.pair(tokenizer, CAPTIONS, np.random.default_rng(0))
  params = encoder.init(jax.random.key(0), ids, mask)["params"]
  hidden = {"hidden_id": tokenizer.vocab_size}
  key = jax.random.key(1)
  loss, right = masked_lm.masked_lm_loss(
    encoder, params, key, ids, mask, **hidden
  )

  corrupted, chosen = masked_lm.corrupt(key, ids, **hidden)
  states = np.asarray(encoder.apply({"params": params}, corrupted, mask))
  table = np.asarray(params["token_embedder"]["embedding"])
  total, hits = 0.0, 0
  for row, column in np.argwhere(np.asarray(chosen)):
    logits = table @ states[row, column] / np.sqrt(8)
    target = ids[row, column]
    total += np.log(np.exp(logits).sum()) - logits[target]
    hits += logits.argmax() == target
  np.testing.assert_allclose(loss, total / chosen.sum(), rtol=1e-5)
  np.testing.assert_allclose(right, hits / chosen.sum(), rtol=1e-6)


def test_hidden_words_are_learnt_from_the_other_caption(tokenizer):
  encoder = T5Encoder(tokenizer.vocab_size + 1, 32, 2, 2, 16, 64)
  optimizer = optax.adam(3e-3)
  rng = np.random.default_rng(0)
  ids, mask = masked_lm.pair(tokenizer, CAPTIONS * 4, rng)
  params = encoder.init(jax.random.key(0), ids, mask)["params"]

  @jax.jit
  def train_step(params, opt_state, key, ids, mask):
    (_, right), grads = jax.value_and_grad(
      lambda p: masked_lm.masked_lm_loss(
        encoder, p, key, ids, mask, hidden_id=tokenizer.vocab_size
      ),
      has_aux=True,
    )(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, right

  opt_state, history = optimizer.init(params), []
  for step in range(300):
    ids, mask = masked_lm.pair(tokenizer, CAPTIONS * 4, rng)
    key = jax.random.key(step)
    params, opt_state, right = train_step(params, opt_state, key, ids, mask)
    history.append(float(right))
  # Without looking across, a colour is one in three and a shape one in two.
  assert np.mean(history[-30:]) > 0.9, np.mean(history[-30:])
