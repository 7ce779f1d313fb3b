"""A stage's denoiser and sampler: guidance, thresholds, randomness, reuse."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.gaussian import V, X
from imagen_jax.diffusion.guidance import (
  NoThreshold,
  StaticThreshold,
  guide,
)
from imagen_jax.nets.unet import UNet
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import Conditioning, TextEmbedding

KEY = jax.random.key(0)
LENGTH, DIM = 5, 7


class Fake(nn.Module):
  """A net that reports its inputs and answers fn(z, time, cond)."""

  fn: Callable
  see: Callable = lambda inputs: None
  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    self.see((z, time, cond))
    return self.fn(z, time, cond)


def zero(z, time, cond):
  return jnp.zeros_like(z)


def make_text(batch):
  tokens = 1 + 0.1 * jax.random.normal(jax.random.key(1), (LENGTH, DIM))
  tokens = jnp.broadcast_to(tokens, (batch, LENGTH, DIM))
  return TextEmbedding(tokens, jnp.ones((batch, LENGTH), bool))


def make_keys(batch):
  return jax.random.split(KEY, batch)


def make_denoiser(
  fn, *, text=None, see=lambda inputs: None, lowres=None, **settings
):
  size = 4 if lowres is None else 8
  stage = Stage(
    Fake(fn, see),
    size,
    prediction=X,
    lowres_size=None if lowres is None else 4,
  )
  level = None if lowres is None else jnp.full(len(lowres), 0.25)
  cond = Conditioning(text or make_text(2), lowres, level)
  return stage.denoiser({}, cond, Sampling(**settings).args())


@pytest.mark.parametrize(("w", "expected"), [(0.5, 0.5), (2.0, 1.0)])
def test_guidance_comes_before_the_threshold(w, expected):
  """cond 3, uncond -2: thresholding first would give 0 and 3."""

  def fn(z, time, cond):
    null = (cond.text.tokens == 0).all((1, 2))
    return jnp.zeros_like(z) + jnp.where(null, -2.0, 3.0)[:, None, None, None]

  denoise = make_denoiser(fn, guidance=w, threshold=StaticThreshold())
  out = denoise(jnp.zeros((2, 4, 4, 3)), jnp.zeros(2))
  assert out.gamma is None
  np.testing.assert_allclose(out.x_hat, expected, atol=1e-6)


def test_the_second_half_of_a_guided_batch_has_the_null_text():
  seen, lowres = [], jax.random.normal(KEY, (2, 4, 4, 3))
  text = make_text(2)
  denoise = make_denoiser(
    zero, text=text, see=seen.append, lowres=lowres, guidance=3.0
  )
  z, logsnr = jax.random.normal(KEY, (2, 8, 8, 3)), jnp.array([0.0, 2.0])
  assert denoise(z, logsnr).x_hat.shape == z.shape
  z_seen, time, cond = seen[-1]
  twice = lambda a: np.concatenate([a, a])
  np.testing.assert_array_equal(z_seen, twice(z))
  np.testing.assert_array_equal(time, twice(time[:2]))
  assert time[0] != time[1]
  np.testing.assert_array_equal(cond.lowres, twice(lowres))
  np.testing.assert_array_equal(cond.aug_level, [0.25] * 4)
  for half, expected in ((slice(2), text), (slice(2, 4), text.null_text())):
    np.testing.assert_array_equal(cond.text.tokens[half], expected.tokens)
    np.testing.assert_array_equal(cond.text.mask[half], expected.mask)


def test_without_guidance_the_batch_is_not_doubled():
  seen, text = [], make_text(2)
  denoise = make_denoiser(zero, text=text, see=seen.append, guidance=1.0)
  denoise(jnp.zeros((2, 4, 4, 3)), jnp.zeros(2))
  assert [len(z) for z, _, _ in seen] == [2, 2]  # the text's reading, the step
  np.testing.assert_array_equal(seen[-1][2].text.tokens, text.tokens)


def wave(z, time, cond):
  """Some function of all that a net hears, one example apart from another."""
  text = cond.text.tokens.mean((1, 2))[:, None, None, None]
  low = cond.lowres.mean((1, 2), keepdims=True)
  return 2 * jnp.sin(z + text + low) + time[:, None, None, None] / 1000


def test_sampling_is_a_pure_function_of_key_and_example():
  """Repeated; alone as in a batch; in [-1, 1]; one trace for all steps."""
  seen = []
  stage = Stage(Fake(wave, seen.append), 8, prediction=X, lowres_size=4)
  sampling = Sampling(steps=20, guidance=2.0, aug_level=0.3)
  text, keys = make_text(3), make_keys(3)
  text = text.replace(tokens=text.tokens * jnp.arange(3.0)[:, None, None])
  lowres = jax.random.normal(KEY, (3, 4, 4, 3))
  run = lambda rows, keys=keys: stage.sample(
    {},
    keys[rows],
    jax.tree.map(lambda a: a[rows], text),
    lowres[rows],
    sampling=sampling,
  )
  everyone = slice(None)
  out = run(everyone)
  assert out.shape == (3, 8, 8, 3)
  assert len(seen) == 2  # the text's reading, and the body of the loop
  np.testing.assert_array_equal(run(everyone), out)
  other = run(everyone, jax.random.split(jax.random.key(1), 3))
  assert len(seen) == 2
  assert np.abs(other - out).max(axis=(1, 2, 3)).min() > 0.01
  np.testing.assert_allclose(run(slice(1, 2)), out[1:2], atol=1e-5)
  assert np.abs(out).max() <= 1


@pytest.mark.parametrize("aug_level", [0.0, 0.5])
def test_the_low_res_is_augmented_once_at_its_own_size(aug_level):
  """Samples are clipped, here of a net that predicts 3, without threshold."""
  seen = []

  def see(inputs):
    cond = inputs[2]
    jax.debug.callback(lambda *a: seen.append(a), cond.lowres, cond.aug_level)

  net = Fake(lambda z, time, cond: 3 + 0 * z, see)
  stage = Stage(net, 32, prediction=X, lowres_size=16)
  lowres = jnp.full((2, 16, 16, 3), 0.5)
  sampling = Sampling(
    steps=1, guidance=1.0, threshold=NoThreshold(), aug_level=aug_level
  )
  out = stage.sample({}, make_keys(2), make_text(2), lowres, sampling=sampling)
  np.testing.assert_array_equal(out, 1.0)
  jax.effects_barrier()
  augmented, level = seen[0]
  assert augmented.shape == lowres.shape
  np.testing.assert_array_equal(level, np.float32([aug_level] * 2))
  if aug_level == 0:
    np.testing.assert_array_equal(augmented, lowres)
  else:
    # Half way, cos = sin: so much of the image, and so much noise.
    np.testing.assert_allclose(augmented.mean((1, 2, 3)), 0.354, atol=0.1)
    np.testing.assert_allclose(augmented.std((1, 2, 3)), 0.707, atol=0.06)
    assert np.abs(augmented[0] - augmented[1]).max() > 0.5


# --- With a real net.


@pytest.fixture(scope="module")
def real():
  """(stage, params): a small U-Net with text; its parameters are normals."""
  net = UNet(
    image_size=8,
    embed_dim=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(4,),
    text_cross_attn_res=(4,),
    per_head_channels=8,
    text_width=11,
    norm_groups=4,
  )
  stage = Stage(net, 8, prediction=V)
  init = lambda: stage.init(KEY, text_length=LENGTH, text_dim=DIM)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32),
    jax.eval_shape(init),
  )
  return stage, params


def test_the_denoiser_is_the_guided_net(real):
  """Reading the text once, for a doubled batch, changes no number."""
  stage, params = real
  text, sampling = make_text(2), Sampling(guidance=3.0, threshold=NoThreshold())
  z = jax.random.normal(KEY, (2, 8, 8, 3))
  logsnr = jnp.array([-1.0, 2.0])
  out = jax.jit(
    lambda: stage.denoiser(params, Conditioning(text), sampling.args())(
      z, logsnr
    )
  )()
  apply = jax.jit(
    lambda text: stage.net.apply(
      {"params": params}, z, stage.time(logsnr), Conditioning(text)
    )
  )
  x_hat = lambda text: V.to_x(apply(text), z, logsnr)
  expected = guide(x_hat(text), x_hat(text.null_text()), 3.0)
  np.testing.assert_allclose(out.x_hat, expected, atol=1e-4)
  assert np.abs(x_hat(text) - x_hat(text.null_text())).max() > 1e-2


def equations(jaxpr):
  """All equations of a jaxpr, those of its inner jaxprs included."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jax.tree.leaves(
      list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


def summed_sizes(jaxpr):
  """The lengths that the jaxpr's matrix products sum over."""
  return {
    eqn.invars[0].aval.shape[axis]
    for eqn in equations(jaxpr)
    if eqn.primitive.name == "dot_general"
    for axis in eqn.params["dimension_numbers"][0][0]
  }


def test_nothing_is_computed_from_the_text_in_the_loop(real):
  """DIM and text_width occur nowhere else in the net, so products show it."""
  stage, params = real
  assert not {DIM, stage.net.text_width} & {4, 8, 16, 32}
  traced = jax.make_jaxpr(
    lambda: stage.sample(
      params, make_keys(2), make_text(2), None, sampling=Sampling(steps=3)
    )
  )()
  # Random bits are made in loops too, which have no matrix products.
  loops = [e for e in equations(traced.jaxpr) if e.primitive.name == "while"]
  products = [summed_sizes(e.params["body_jaxpr"].jaxpr) for e in loops]
  (inside,) = [found for found in products if found]
  assert {DIM, stage.net.text_width} <= summed_sizes(traced.jaxpr)
  assert 8 in inside
  assert not {DIM, stage.net.text_width} & inside


def test_initial_parameters_serve_pictures_of_the_full_size():
  """init looks at the smallest image; a super-resolution stage's too."""
  net = UNet(
    embed_dim=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4,
    attn_resolutions=(), text_cross_attn_res=(), feature_pooling_type="mean",
    text_width=11,
  )  # fmt: skip
  stage = Stage(net, 16, lowres_size=4)
  params = jax.eval_shape(
    lambda: stage.init(KEY, text_length=LENGTH, text_dim=DIM)
  )
  loss, logsnr = jax.eval_shape(
    stage.loss, params, jax.eval_shape(lambda: stage.draw(KEY, 2)),
    jnp.zeros((2, 16, 16, 3)), make_text(2),
    jnp.zeros((2, 4, 4, 3)),
  )  # fmt: skip
  assert loss.shape == logsnr.shape == (2,)
