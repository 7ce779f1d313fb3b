"""A stage's guidance in an interval of log-SNR, and its rescale."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.gaussian import X
from imagen_jax.diffusion.guidance import NoThreshold, StaticThreshold
from imagen_jax.diffusion.samplers import DDIM
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import Conditioning, TextEmbedding

KEYS = jax.random.split(jax.random.key(0), 2)
COND, NULL = 0.25, 0.125  # what the net predicts, exact in float32
STEPS = 20
RAN = []  # the batch sizes of the net's evaluations


class Constant(nn.Module):
  """Predicts COND where there is a text and NULL where there is none."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    # Called by evaluations, not by tracing, and not by the text's reading.
    if z.shape[1] == 4:
      jax.debug.callback(lambda time: RAN.append(len(time)), time)
    null = (cond.text.tokens == 0).all((1, 2))
    x = jnp.where(null, NULL, COND)[:, None, None, None]
    return jnp.broadcast_to(x, (*z.shape[:3], self.out_channels))


STAGE = Stage(Constant(), 4, prediction=X)
LEARNED = Stage(Constant(out_channels=6), 4, prediction=X)
TEXT = TextEmbedding(jnp.ones((2, 5, 7)), jnp.ones((2, 5), bool))


def sample(stage=STAGE, **settings):
  """Samples, and returns the images and the batches that the net evaluated."""
  sampling = Sampling(STEPS, step=DDIM(), threshold=NoThreshold(), **settings)
  out = np.asarray(stage.sample({}, KEYS, TEXT, sampling=sampling))
  jax.effects_barrier()
  found = RAN.copy()
  RAN.clear()
  return out, found


LEVELS = np.asarray(STAGE.schedule(1 - jnp.arange(STEPS) / STEPS))


@pytest.mark.parametrize(
  ("low", "high"), [(-1.0, 2.5), (-99.0, 0.0), (3.0, 99.0), (90.0, 99.0)]
)
def test_steps_outside_the_interval_evaluate_half_the_batch(low, high):
  inside = np.clip(LEVELS, low, high) == LEVELS
  out, ran = sample(guidance=3.0, guidance_interval=(low, high))
  assert sorted(ran) == sorted(4 if guided else 2 for guided in inside)
  guided = COND + 2 * (COND - NULL)
  expected = guided if inside[-1] else COND  # the final step returns x_hat
  np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_an_interval_without_end_is_none():
  everywhere, ran = sample(
    guidance=3.0, guidance_interval=(-np.inf, np.inf), stage=LEARNED
  )
  plain, ran_plain = sample(guidance=3.0, stage=LEARNED)
  np.testing.assert_allclose(everywhere, plain, rtol=1e-6)
  assert ran == ran_plain == [4] * STEPS


def test_without_an_interval_there_is_no_conditional():
  """The program is what it was."""

  def program(**settings):
    sampling = Sampling(guidance=3.0, **settings).args()
    denoise = STAGE.denoiser({}, Conditioning(TEXT), sampling)
    return str(jax.make_jaxpr(denoise)(jnp.zeros((2, 4, 4, 3)), jnp.zeros(2)))

  assert "cond[" not in program() and "sqrt" not in program()
  assert "cond[" in program(guidance_interval=(0.0, 1.0))
  assert "sqrt" in program(guidance_rescale=0.5)


def test_each_example_has_its_own_level():
  """A batch of several levels is guided where it should be."""
  sampling = Sampling(
    guidance=3.0, guidance_interval=(-1.0, 1.0), threshold=NoThreshold()
  )
  denoise = STAGE.denoiser({}, Conditioning(TEXT), sampling.args())
  x_hat, _ = denoise(jnp.zeros((2, 4, 4, 3)), jnp.array([0.0, 5.0]))
  guided = COND + 2 * (COND - NULL)
  np.testing.assert_array_equal(x_hat[0], np.full((4, 4, 3), guided))
  np.testing.assert_array_equal(x_hat[1], np.full((4, 4, 3), COND))


class Wide(nn.Module):
  """Predicts a pattern: of width 1 with a text, of none without."""

  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    null = (cond.text.tokens == 0).all((1, 2))[:, None, None, None]
    pattern = jnp.where(jnp.arange(z.shape[1])[:, None, None] % 2, 0.5, -0.5)
    return jnp.broadcast_to(jnp.where(null, 0.0, pattern), z.shape)


@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
def test_rescale_is_of_x_hat_and_before_the_threshold(phi):
  """Guided by 4 the pattern is 4 times as wide; a threshold first: 2 times."""
  stage = Stage(Wide(), 4, prediction=X)
  sampling = Sampling(
    guidance=4.0, guidance_rescale=phi, threshold=StaticThreshold()
  )
  denoise = stage.denoiser({}, Conditioning(TEXT), sampling.args())
  x_hat, _ = denoise(jnp.zeros((2, 4, 4, 3)), jnp.zeros(2))
  expected = min(phi * 0.5 + (1 - phi) * 2.0, 1.0)
  np.testing.assert_allclose(np.abs(x_hat), expected, rtol=1e-6)
