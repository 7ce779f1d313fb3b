"""Describing: its pairs, what a logit may see, and that it is learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.text.describe import Describer, describe_loss, pair
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.text.vocabulary import train_vocabulary

TEXTS = [
  [f"{color} {shape}", f"a {color} {shape}", f"one {shape} which is {color}"]
  for color in ("red", "green", "blue")
  for shape in ("circle", "square")
]
LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
  train_vocabulary([t for of in TEXTS for t in of], path, vocab_size=100)
  return Tokenizer(path, LENGTH)


@pytest.fixture(scope="module")
def model(tokenizer):
  return Describer(T5Encoder(tokenizer.vocab_size, 16, 2, 1, 8, 16))


@pytest.fixture(scope="module")
def params(model, random_params):
  ids = jnp.ones((1, LENGTH), jnp.int32)
  return random_params(model, ids, ids > 0, ids)


def test_pairs_are_a_caption_and_the_description(tokenizer):
  rng = np.random.default_rng(0)
  drawn = set()
  for _ in range(8):
    ids, mask, target, target_mask = pair(tokenizer, TEXTS, rng)
    for i, (description, *captions) in enumerate(TEXTS):
      both, there = tokenizer([description, *captions])
      which = [ids[i].tolist() == row.tolist() for row in both].index(True)
      drawn.add(which)
      np.testing.assert_array_equal(mask[i], there[which])
      np.testing.assert_array_equal(target[i], both[0])
      np.testing.assert_array_equal(target_mask[i], there[0])
  assert drawn == {1, 2}


def test_a_logit_sees_what_it_may(tokenizer, model, params):
  """The caption's real tokens, and of the target those before its own."""
  ids, mask, target, _ = pair(tokenizer, TEXTS, np.random.default_rng(0))
  apply = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))
  logits = apply(ids, mask, target)
  padding = np.where(mask, ids, 9)
  np.testing.assert_allclose(apply(padding, mask, target), logits, atol=1e-5)
  later = target.copy()
  later[:, 3:] = 7
  changed = np.abs(apply(ids, mask, later) - logits).max((0, 2))
  assert changed[:4].max() < 1e-5 < 1e-3 < changed[4:].min()
  other = np.abs(apply(ids[::-1], mask[::-1], target) - logits).max((0, 2))
  assert other.min() > 1e-3


def test_the_loss_counts_real_tokens_alone(tokenizer, model, params):
  batch = pair(tokenizer, TEXTS, np.random.default_rng(0))
  *_, target, real = batch
  loss, right = describe_loss(model, params, *batch)
  logits = np.asarray(model.apply({"params": params}, *batch[:3]), np.float64)
  nats = np.log(np.exp(logits).sum(-1))
  nats -= np.take_along_axis(logits, target[..., None], -1)[..., 0]
  np.testing.assert_allclose(loss, nats[real].mean(), rtol=1e-5)
  hits = (logits.argmax(-1) == target)[real].mean()
  np.testing.assert_allclose(right, hits, rtol=1e-6)


def test_descriptions_are_learnt(tokenizer):
  encoder = T5Encoder(tokenizer.vocab_size, 32, 2, 2, 16, 64)
  model, optimizer = Describer(encoder), optax.adam(3e-3)
  rng = np.random.default_rng(0)
  ids, mask, target, _ = pair(tokenizer, TEXTS, rng)
  init = lambda key: model.init(key, ids, mask, target)["params"]
  params = jax.jit(init)(jax.random.key(0))

  @jax.jit
  def train_step(params, opt_state, batch):
    (_, right), grads = jax.value_and_grad(
      lambda p: describe_loss(model, p, *batch), has_aux=True
    )(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, right

  opt_state, history = optimizer.init(params), []
  for _ in range(150):
    batch = pair(tokenizer, TEXTS * 4, rng)
    params, opt_state, right = train_step(params, opt_state, batch)
    history.append(float(right))
  # Without the caption a colour is one in three and a shape one in two.
  assert np.mean(history[-20:]) > 0.97, np.mean(history[-20:])
