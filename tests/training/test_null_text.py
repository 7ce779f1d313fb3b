"""What the loss has for prompts that are dropped."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.parallel import mesh
from imagen_jax.stage import Stage
from imagen_jax.text.encoder import Embedder
from imagen_jax.text.tokenizer import empty_prompt
from imagen_jax.training.step import batch_loss, encode_text

ROWS, LENGTH, DIM = 6, 4, 8
ENCODER = T5Encoder(16, DIM, 2, 1, 4, mlp_dim=16)


class Net(nn.Module):
  """Text at real tokens, summed, beside the image."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    real = cond.text.tokens * cond.text.mask[..., None]
    return z + nn.Dense(3)(real.sum(1))[:, None, None, :]


STAGE = Stage(Net(), 2)


@pytest.fixture(scope="module")
def case(random_params):
  """(net, encoder's weights, draws, batch): every third row is dropped."""
  rng = np.random.default_rng(0)
  mask = np.arange(LENGTH)[None, :] < rng.integers(2, LENGTH + 1, (ROWS, 1))
  ids = rng.integers(2, 16, (ROWS, LENGTH), np.int32) * mask
  batch = {
    "tokens": ids,
    "mask": mask,
    "image": rng.normal(size=(ROWS, 2, 2, 3)),
  }
  text = random_params(ENCODER, ids, mask)
  net = STAGE.init(jax.random.key(1), text_length=LENGTH, text_dim=DIM)
  draws = STAGE.draw(jax.random.key(0), ROWS)
  return net, text, draws.replace(dropped=jnp.arange(ROWS) % 3 == 0), batch


def losses(embedder, net, text, draws, batch):
  """The losses [B] of a training batch, from its token ids."""
  words = encode_text(embedder, text, batch, draws.dropped)
  return batch_loss(STAGE, net, draws, batch, words)[0]


@pytest.mark.parametrize("attend_padding", [False, True])
def test_a_dropped_prompt_is_the_empty_one(case, attend_padding):
  """As if that were encoded by itself and put in its place."""
  net, text, draws, batch = case
  embedder = Embedder(ENCODER, attend_padding, "empty")
  loss = losses(embedder, net, text, draws, batch)
  words = embedder(text, batch["tokens"], batch["mask"])
  words = words.replace(
    null=embedder(text, *empty_prompt(ENCODER.special, LENGTH))
  )
  expected, _ = STAGE.loss(net, draws, batch["image"], words)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_on_a_mesh_rows_stay_where_they_are(case):
  net, text, draws, batch = case
  embedder = Embedder(ENCODER, True, "empty")
  loss = jax.jit(lambda *args: losses(embedder, net, text, *args))
  expected = loss(draws, batch)
  devices = mesh.make_mesh(mesh.MeshShape(data=2), jax.devices()[:2])
  with jax.set_mesh(devices):
    spread = mesh.batch_sharding(devices, ROWS)
    found = loss(*jax.device_put((draws, batch), spread))
    program = loss.lower(*jax.device_put((draws, batch), spread)).compile()
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert "all-gather" not in program.as_text()


def test_a_dropped_prompt_is_zeros_as_in_the_paper(case):
  net, text, draws, batch = case
  loss = losses(Embedder(ENCODER), net, text, draws, batch)
  words = Embedder(ENCODER)(text, batch["tokens"], batch["mask"])
  expected, _ = STAGE.loss(net, draws, batch["image"], words)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  empty = Embedder(ENCODER, null="empty")
  other = losses(empty, net, text, draws, batch)
  assert (abs(other - loss) > 1e-4).tolist() == draws.dropped.tolist()
