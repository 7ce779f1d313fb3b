"""Samplers with denoisers known in closed form."""

import functools
import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import (
  gaussian,
  guidance,
  samplers,
  schedules,
)
from imagen_jax.diffusion.samplers import Denoised, Step
from imagen_jax.diffusion.sampling import Sampling, UniformTime, time

COSINE = schedules.CosineSchedule()
LINEAR = schedules.LinearSchedule()
MEAN, STD = 0.3, 0.5
SHAPE = (32, 32, 5)

GAMMAS = (0.0, 0.3, 1.0)
# Of a Step, for a sampler that does not look at them.
UNUSED = {"gamma": None, "x_hat_last": None, "logsnr_last": None}
SAMPLERS = {
  "ddim": samplers.DDIM(),
  "dpm": samplers.DPMSolver(),
  **{f"ancestral_{gamma}": samplers.Ancestral(gamma) for gamma in GAMMAS},
}


def every_sampler(keys, z_t, x_hat, step):
  """A sampler in each channel: DDIM, DPM-Solver++, the ancestral GAMMAS.

  One program for all, as compiling takes longer than running.
  """
  assert step.gamma is None
  ddim = samplers.DDIM()(keys, z_t, x_hat, step)
  dpm = samplers.DPMSolver()(keys, z_t, x_hat, step)
  gamma = jnp.array([0, 0, *GAMMAS]).reshape(1, 1, 1, 5)
  step = step._replace(gamma=gamma)
  ancestral = samplers.LearnedAncestral()(keys, z_t, x_hat, step)
  return jnp.concatenate([ddim[..., :1], dpm[..., 1:2], ancestral[..., 2:]], -1)


def uniform(steps, schedule=COSINE):
  return schedule(time(jnp.arange(steps), Sampling(steps).args(), schedule))


def make_keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def gaussian_denoiser(z, logsnr):
  """E[x | z] for data N(MEAN, STD^2)."""
  alpha, sigma = schedules.alpha_sigma(gaussian.per_example(logsnr, z))
  gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
  return Denoised(MEAN + gain * (z - alpha * MEAN))


@pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])
def test_gaussian_data_come_back(schedule):
  """Through every sampler, mean and std approach the data's as steps grow."""
  errors = []
  for steps in (8, 128):
    draw = functools.partial(
      samplers.sample,
      denoise=gaussian_denoiser,
      shape=SHAPE,
      logsnr=uniform(steps, schedule),
      sampler=every_sampler,
    )
    x = np.asarray(jax.jit(draw)(make_keys(48)))
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), MEAN, atol=0.01)
    errors.append(np.abs(x.std(axis=(0, 1, 2)) - STD))
  assert (errors[1] < errors[0] / 2).all(), errors
  assert (errors[1] < 0.03).all(), errors


def test_point_mass_is_recovered_by_ddim():
  """Through eps: the last x_hat must be worked out, not handed over."""
  x = jax.random.uniform(jax.random.key(1), (3, 2, 2, 3), minval=-1)

  def denoise(z, logsnr):
    eps = gaussian.eps_from_x(x, z, logsnr)
    x_hat = gaussian.x_from_eps(eps, z, logsnr)
    return Denoised(guidance.static_threshold(x_hat))

  for steps in (1, 25):
    out = samplers.sample(
      make_keys(3), denoise, x.shape[1:], logsnr=uniform(steps)
    )
    # At t = 1, float32 leaves x_hat its rounding times 1 / alpha = 2e4.
    np.testing.assert_allclose(out, x, atol=0.02 if steps == 1 else 1e-5)


@pytest.mark.parametrize("logsnr_s, logsnr_t", [(2, -1), (20, -20), (9, 8.5)])
def test_ddim_keeps_the_noise_of_a_point_mass(logsnr_s, logsnr_t):
  rng = np.random.default_rng(0)
  x, eps = rng.normal(size=(2, 3, 2, 2, 3)).astype(np.float32)
  z_t = gaussian.q_sample(x, eps, logsnr_t)
  z_s = samplers.ddim_step(z_t, x, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
  expected = gaussian.q_sample(x, eps, logsnr_s)
  np.testing.assert_allclose(z_s, expected, atol=3e-6)


def test_ddim_takes_its_noise_from_the_thresholded_x_hat():
  z_t = jnp.full((1, 2), 2.0)
  x_hat = jnp.full((1, 2), 3.0)
  x_tilde = guidance.static_threshold(x_hat)
  z_s = samplers.ddim_step(z_t, x_tilde, logsnr_t=-1.0, logsnr_s=2.0)
  (alpha_t, sigma_t), (alpha_s, sigma_s) = (
    (np.exp(-np.logaddexp(0, -a) / 2), np.exp(-np.logaddexp(0, a) / 2))
    for a in (-1.0, 2.0)
  )
  own = alpha_s * 1.0 + sigma_s * (2.0 - alpha_t * 1.0) / sigma_t
  nets = alpha_s * 1.0 + sigma_s * (2.0 - alpha_t * 3.0) / sigma_t
  np.testing.assert_allclose(z_s, np.full((1, 2), own), rtol=1e-6)
  assert abs(own - nets) > 0.1


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_ancestral_noise_lies_between_posterior_and_transition(gamma):
  keys, shape = make_keys(3), (2, 2, 3)
  zero = jnp.zeros((3, *shape))
  z_s = samplers.ancestral_step(
    keys, zero, zero, logsnr_t=-1.0, logsnr_s=2.0, gamma=gamma
  )
  share = 1 - np.exp(-3.0)
  posterior, transition = share / (1 + np.exp(2.0)), share / (1 + np.exp(-1.0))
  std = np.sqrt(posterior ** (1 - gamma) * transition**gamma)
  expected = std * gaussian.noise(keys, shape)
  np.testing.assert_allclose(z_s, expected, rtol=1e-5)


def test_the_loop_hands_every_step_what_it_knows():
  """gamma of now, x_hat and level of the step before; at first, of now."""
  seen = []

  def denoise(z, logsnr):
    level = gaussian.per_example(logsnr, z)
    return Denoised(jnp.zeros_like(z) + level, jnp.zeros_like(z) + level / 100)

  def sampler(keys, z_t, x_hat, step):
    jax.debug.callback(
      lambda *given: seen.append([a.ravel()[0] for a in given]),
      *(step.logsnr_t, step.logsnr_s, step.gamma),
      *(step.logsnr_last, step.x_hat_last),
    )
    return z_t

  samplers.sample(
    make_keys(2),
    denoise,
    (2,),
    logsnr=jnp.array([-3.0, 1.0, 4.0]),
    sampler=sampler,
  ).block_until_ready()
  jax.effects_barrier()
  expected = [
    (-3, 1, -0.03, -3, 0),
    (1, 4, 0.01, -3, -3),
    (4, 4, 0.04, 1, 1),
  ]
  np.testing.assert_allclose(sorted(seen), expected, rtol=1e-6)


def test_ancestral_gamma_may_be_learned_per_pixel():
  keys, shape = make_keys(3), (2, 2, 3)
  z_t, x_hat = jax.random.normal(jax.random.key(1), (2, 3, *shape))
  gamma = jax.random.uniform(jax.random.key(2), (3, *shape))
  levels = {
    "logsnr_t": jnp.array([-3.0, 0, 1]),
    "logsnr_s": jnp.array([-1.0, 1, 9]),
  }
  z_s = samplers.ancestral_step(keys, z_t, x_hat, **levels, gamma=gamma)
  for where in [(0, 0, 0, 0), (1, 1, 0, 2), (2, 1, 1, 1)]:
    scalar = samplers.Ancestral(float(gamma[where]))
    alone = scalar(keys, z_t, x_hat, Step(**levels, **UNUSED))
    np.testing.assert_allclose(z_s[where], alone[where], rtol=1e-5)


def test_a_bare_batch_of_gammas_is_refused():
  zero = jnp.zeros((3, 2, 2, 3))
  with pytest.raises(AssertionError, match="gamma"):
    samplers.ancestral_step(
      make_keys(3), zero, zero, logsnr_t=0.0, logsnr_s=1.0, gamma=jnp.ones(3)
    )


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_a_step_of_no_length_changes_nothing(sampler):
  """Two times within a schedule's clip have the same logsnr."""
  z_t, x_hat = jax.random.normal(jax.random.key(1), (2, 3, 2, 2, 3))
  step = Step(9.0, 9.0, None, jnp.ones((3, 2, 2, 3)), 8.0)
  z_s = sampler(make_keys(3), z_t, x_hat, step)
  np.testing.assert_allclose(z_s, z_t, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 7])
def test_last_step_adds_no_noise(steps):
  out = samplers.sample(
    make_keys(3),
    lambda z, logsnr: Denoised(jnp.full_like(z, 0.25)),
    (2, 2, 3),
    logsnr=uniform(steps),
    sampler=samplers.Ancestral(1.0),
  )
  np.testing.assert_array_equal(out, 0.25)


def test_grid_is_uniform_in_t_and_levels_are_per_example():
  seen = []

  def denoise(z, logsnr):
    assert logsnr.shape == (3,)
    jax.debug.callback(lambda a: seen.append(np.asarray(a)), logsnr)
    return Denoised(z)

  samplers.sample(
    make_keys(3), denoise, (2, 2, 3), logsnr=uniform(4)
  ).block_until_ready()
  jax.effects_barrier()
  expected = np.asarray(COSINE(jnp.array([1.0, 0.75, 0.5, 0.25])))
  seen = np.sort(np.stack(seen), axis=0)  # Callbacks may come in any order.
  np.testing.assert_allclose(seen, np.stack([expected] * 3, 1), atol=1e-5)


def test_starts_from_standard_noise():
  z_1 = samplers.sample(
    make_keys(48), lambda z, _: Denoised(z), SHAPE, logsnr=uniform(1)
  )
  assert abs(z_1.mean()) < 0.01 and abs(z_1.std() - 1) < 0.01


def test_a_picture_does_not_depend_on_its_batch():
  keys = make_keys(5)

  def denoise(z, logsnr):
    x_hat, _ = gaussian_denoiser(z, logsnr)
    return Denoised(guidance.dynamic_threshold(x_hat, 90.0))

  @jax.jit
  def draw(keys):
    return samplers.sample(
      keys,
      denoise,
      (2, 2, 3),
      logsnr=uniform(6),
      sampler=samplers.Ancestral(0.3),
    )

  three = draw(keys[:3])
  np.testing.assert_array_equal(three, draw(keys[:3]))
  np.testing.assert_array_equal(three[0], draw(keys[jnp.array([0, 3, 4])])[0])
  np.testing.assert_array_equal(three[0], draw(keys[jnp.array([4, 3, 0])])[2])
  np.testing.assert_allclose(three[:1], draw(keys[:1]), atol=1e-5)
  assert np.abs(three[0] - three[1]).max() > 0.1


def primitives(jaxpr):
  """Names of all primitives of a jaxpr and of the jaxprs within it."""
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from primitives(inner)


def test_parts_of_the_steps_give_the_bits_of_all():
  keys, steps = make_keys(3), 7
  sampler = jax.tree.map(jnp.float32, samplers.Ancestral(0.3))

  @jax.jit
  def run(carry, first, last):
    return samplers.advance(
      carry, first, last,
      keys=keys, denoise=gaussian_denoiser, steps=steps, sampler=sampler,
      logsnr=lambda i: COSINE(UniformTime()(i, steps, COSINE)),
    )  # fmt: skip

  whole = run(samplers.begin(keys, (2, 2, 3)), 0, steps)
  for cuts in ((0, 1, 2, 3, 4, 5, 6, 7), (0, 3, 7), (0, 6, 7)):
    carry = samplers.begin(keys, (2, 2, 3))
    for first, last in itertools.pairwise(cuts):
      carry = run(carry, first, last)
    jax.tree.map(np.testing.assert_array_equal, carry, whole)
  assert run._cache_size() == 1
  all_at_once = samplers.sample(
    keys, gaussian_denoiser, (2, 2, 3),
    logsnr=uniform(steps), sampler=samplers.Ancestral(0.3),
  )  # fmt: skip
  np.testing.assert_allclose(whole.z, all_at_once, atol=1e-5)


def test_program_is_one_scan_with_the_denoiser_once():
  calls = []

  def denoise(z, logsnr):
    calls.append(logsnr.shape)
    return Denoised(jax.lax.tan(z))  # A primitive that nothing else uses.

  draw = functools.partial(
    samplers.sample,
    denoise=denoise,
    shape=(2, 2, 3),
    logsnr=uniform(9),
    sampler=samplers.Ancestral(0.3),
  )
  names = list(primitives(jax.make_jaxpr(draw)(make_keys(3)).jaxpr))
  assert names.count("scan") == 1 and "while" not in names
  assert names.count("tan") == 1
  assert calls == [(3,)]


def test_half_precision_denoiser_samples_in_float32():
  out = samplers.sample(
    make_keys(3),
    lambda z, _: Denoised(z.astype(jnp.bfloat16)),
    (2, 2, 3),
    logsnr=uniform(2),
  )
  assert out.dtype == jnp.float32


@pytest.mark.parametrize("gamma", [-0.1, 1.5])
def test_gamma_out_of_range(gamma):
  with pytest.raises(ValueError, match=f"gamma is {gamma}, expected 0 to 1"):
    samplers.Ancestral(gamma)
