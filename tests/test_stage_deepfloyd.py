"""What a stage has of DeepFloyd IF: learned variance, timesteps, upsampling."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.augment import bilinear_aligned
from imagen_jax.diffusion.gaussian import X
from imagen_jax.diffusion.guidance import NoThreshold
from imagen_jax.diffusion.samplers import Ancestral, LearnedAncestral
from imagen_jax.diffusion.schedules import DiscreteCosineSchedule, alpha_sigma
from imagen_jax.interop.deepfloyd_if import TIMESTEPS
from imagen_jax.nets.conditioning import with_lowres
from imagen_jax.nets.unet import UNet
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import Conditioning, TextEmbedding


class Fake(nn.Module):
  """A net that reports its inputs and answers fn(z, time, cond)."""

  fn: Callable
  out_channels: int = 3
  see: Callable = lambda inputs: None
  stride: int = 1

  @nn.compact
  def __call__(self, z, time, cond):
    self.see((z, time, cond))
    return self.fn(z, time, cond)


def zero(z, time, cond):
  return jnp.zeros_like(z)


def make_text(batch):
  return TextEmbedding(jnp.ones((batch, 5, 7)), jnp.ones((batch, 5), bool))


def make_keys(batch):
  return jax.random.split(jax.random.key(0), batch)


def test_the_learned_variance_is_that_with_the_text_and_unguided():
  """cond predicts x_hat 3 and v 0.5, null -2 and -1."""

  def fn(z, time, cond):
    null = (cond.text.tokens == 0).all((1, 2))[:, None, None, None]
    x, v = jnp.where(null, -2.0, 3.0), jnp.where(null, -1.0, 0.5)
    return jnp.concatenate([x + 0 * z, v + 0 * z], axis=-1)

  stage = Stage(Fake(fn, out_channels=6), 4, prediction=X)
  for w, expected in ((1.0, 3.0), (2.0, 8.0)):
    sampling = Sampling(guidance=w, threshold=NoThreshold())
    denoise = stage.denoiser({}, Conditioning(make_text(2)), sampling)
    x_hat, gamma = denoise(jnp.zeros((2, 4, 4, 3)), jnp.zeros(2))
    np.testing.assert_allclose(x_hat, np.full((2, 4, 4, 3), expected))
    np.testing.assert_allclose(gamma, np.full((2, 4, 4, 3), 0.75))


@pytest.mark.parametrize(
  ("step", "matters"), [(LearnedAncestral(), True), (Ancestral(0.3), False)]
)
def test_who_heeds_the_learned_variance(step, matters):
  """v = 1 is much more noise than v = -1, in steps as long as these."""

  def pictures(v):
    fn = lambda z, time, cond: jnp.concatenate(
      [0.1 * z, jnp.full_like(z, v)], -1
    )
    stage = Stage(Fake(fn, out_channels=6), 4, prediction=X)
    sampling = Sampling(guidance=1.0, step=step, timesteps=(999, 300, 100))
    stage.check_sampling(sampling)
    return stage.sample({}, make_keys(2), make_text(2), None, sampling=sampling)

  few, many = np.abs(pictures(-1.0)).mean(), np.abs(pictures(1.0)).mean()
  assert (many > 1.5 * few) == matters
  assert (many == few) != matters


def test_a_stage_asks_its_net_at_the_timesteps():
  seen = []

  def see(inputs):
    jax.debug.callback(lambda time: seen.append(float(time[0])), inputs[1])

  stage = Stage(Fake(zero, see=see), 4, DiscreteCosineSchedule(), prediction=X)
  steps = TIMESTEPS["smart27"]
  sampling = Sampling(guidance=1.0, timesteps=steps)
  stage.sample({}, make_keys(2), make_text(2), None, sampling=sampling)
  jax.effects_barrier()
  assert set(seen) == {*steps} and len(seen) == len(steps) + 1


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_the_low_res_is_enlarged_and_then_augmented(level):
  """So its noise is that of single pixels; at level 0 there is none, at all."""
  stage = Stage(
    Fake(zero),
    64,
    lowres_size=16,
    aug_schedule=DiscreteCosineSchedule(),
    upsample=bilinear_aligned,
  )
  lowres = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), minval=-1)
  cond = stage.condition(make_keys(2), make_text(2), lowres, jnp.full(2, level))
  large = bilinear_aligned(lowres, (64, 64))
  if level == 0:
    np.testing.assert_array_equal(cond.lowres, large)
    return
  alpha, sigma = alpha_sigma(DiscreteCosineSchedule()(0.25))
  noise = np.asarray((cond.lowres - alpha * large) / sigma)
  np.testing.assert_allclose(noise.std(), 1, atol=0.02)
  assert abs((noise[:, :, 1:] * noise[:, :, :-1]).mean()) < 0.02


def test_a_crop_is_enlarged_as_much():
  stage = Stage(
    Fake(zero), 64, lowres_size=16, crop_size=32, upsample=bilinear_aligned
  )
  cond = stage.condition(
    make_keys(2), make_text(2), jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)
  )
  assert cond.lowres.shape == (2, 32, 32, 3)


def test_a_net_leaves_a_picture_of_its_size_as_it_is():
  z, lowres = jax.random.normal(jax.random.key(1), (2, 2, 8, 8, 3))
  joined = with_lowres(z, lowres)
  np.testing.assert_array_equal(joined, jnp.concatenate([z, lowres], -1))


def test_a_real_net_with_all_of_it():
  """By shapes alone: its parameters, its loss and its images."""
  net = UNet(
    embed_dim=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4,
    attn_resolutions=(), text_cross_attn_res=(), feature_pooling_type="mean",
    text_width=11, out_channels=6,
  )  # fmt: skip
  table = DiscreteCosineSchedule()
  stage = Stage(
    net, 16, table, lowres_size=4, aug_schedule=table, upsample=bilinear_aligned
  )
  sampling = Sampling(
    step=LearnedAncestral(), timesteps=TIMESTEPS["super27"], aug_level=0.25
  )
  stage.check_sampling(sampling)

  def run(key):
    params = stage.init(key, text_length=5, text_dim=7)
    lowres, x = (jnp.zeros((2, side, side, 3)) for side in (4, 16))
    text = make_text(2)
    loss, _ = stage.loss(params, stage.draw(key, 2), x, text, lowres)
    return loss, stage.sample(
      params, make_keys(2), text, lowres, sampling=sampling
    )

  loss, pictures = jax.eval_shape(run, jax.random.key(0))
  assert (loss.shape, pictures.shape) == ((2,), (2, 16, 16, 3))
