"""Sampling as DeepFloyd IF's in diffusers, by make_if_sampler_fixture.py.

The schedule's table, a stage's denoiser with a net that answers as the
fixture's, and the samplers' steps, with the noise of the fixture.
"""

import pathlib
import runpy
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from imagen_jax.diffusion import augment, samplers
from imagen_jax.diffusion.guidance import DynamicThreshold
from imagen_jax.diffusion.samplers import Denoised
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteCosineSchedule, cosine_table
from imagen_jax.interop.deepfloyd_if import TIMESTEPS
from imagen_jax.stage import Stage
from imagen_jax.types import Conditioning, TextEmbedding

HERE = pathlib.Path(__file__).parent / "oracles"
SCRIPT = runpy.run_path(str(HERE / "make_if_sampler_fixture.py"))
FIXTURE = safetensors.numpy.load_file(SCRIPT["PATH"])
SCHEDULE = DiscreteCosineSchedule()
BATCH = SCRIPT["SHAPE"][0]
KEYS = jax.random.split(jax.random.key(0), BATCH)


class Fake(nn.Module):
  """A net with learned variance that answers as set, and sees the time."""

  out: Callable
  see: Callable
  out_channels: int = 6
  stride: int = 1

  @nn.compact
  def __call__(self, z, time, cond):
    self.see(time)
    return jnp.asarray(self.out())


@pytest.fixture
def noise(monkeypatch):
  """The fixture's noise, wherever the sampler draws some."""
  for module in (samplers, augment):
    monkeypatch.setattr(module, "noise", lambda *_: FIXTURE["noise"])


def test_the_table():
  """Theirs is a product in float32."""
  alpha_bar = 1 / (1 + np.exp(-np.array(cosine_table())))
  np.testing.assert_allclose(alpha_bar, FIXTURE["alpha_bar"], rtol=2e-5)
  np.testing.assert_allclose(
    alpha_bar[:981], FIXTURE["alpha_bar"][:981], rtol=1e-6
  )


@pytest.mark.parametrize("name", ["smart27", "fast27"])
def test_the_lists(name):
  np.testing.assert_array_equal(TIMESTEPS[name], FIXTURE[f"{name}/steps"])


@pytest.mark.parametrize("cap", SCRIPT["CAPS"])
@pytest.mark.parametrize(
  ("name", "i"), [(n, i) for n, those in SCRIPT["STEPS"].items() for i in those]
)
def test_a_step_with_learned_variance(noise, name, i, cap):
  """From the net's six channels to z_s, at regular and irregular steps."""
  heard, steps = [], FIXTURE[f"{name}/steps"]
  stage = Stage(Fake(lambda: SCRIPT["net"](FIXTURE), heard.append), 4, SCHEDULE)
  sampling = Sampling(guidance=1.0, threshold=DynamicThreshold(95.0, cap))
  text = TextEmbedding(jnp.ones((BATCH, 2, 3)), jnp.ones((BATCH, 2), bool))
  denoise = stage.denoiser({}, Conditioning(text), sampling.args())
  z_t = SCRIPT["noised"](FIXTURE, FIXTURE["alpha_bar"][steps[i]])
  level = lambda i: jnp.broadcast_to(SCHEDULE(steps[i] / 1000), BATCH)
  x_hat, gamma = denoise(z_t, level(i))
  np.testing.assert_array_equal(heard[-1], steps[i])
  z_s = x_hat  # the last step's, as the loop has it
  if steps[i] > 0:
    z_s = samplers.ancestral_step(
      KEYS, z_t, x_hat, gamma=gamma, logsnr_t=level(i), logsnr_s=level(i + 1)
    )
  where = f"{name}/{i}/{cap}"
  np.testing.assert_allclose(x_hat, FIXTURE[f"{where}/x_hat"], atol=2e-5)
  np.testing.assert_allclose(z_s, FIXTURE[f"{where}/z_s"], atol=1e-4)


@pytest.mark.parametrize("n", SCRIPT["SOLVER_STEPS"])
def test_dpm_solver(monkeypatch, n):
  """What it asks the denoiser on the way, and what it ends with."""
  monkeypatch.setattr(samplers, "noise", lambda *_: FIXTURE["z_1"][:1])
  levels = SCHEDULE(FIXTURE[f"solver/{n}/steps"] / 1000)
  expected, asked = FIXTURE[f"solver/{n}/x_hat"], []

  def denoise(z, logsnr):
    asked.append(SCRIPT["denoise"](z, jnp))
    return Denoised(asked[-1])

  with jax.disable_jit():  # a loop of Python's
    x = samplers.sample(
      KEYS[:1],
      denoise,
      SCRIPT["SHAPE"][1:],
      logsnr=levels,
      sampler=samplers.DPMSolver(),
    )
  np.testing.assert_allclose(np.stack(asked), expected, atol=1e-5)
  np.testing.assert_allclose(x, expected[-1], atol=1e-5)


def test_the_low_res_picture(noise):
  large = augment.bilinear_aligned(FIXTURE["x"], SCRIPT["LARGE"])
  np.testing.assert_allclose(large, FIXTURE["large"], atol=1e-6)
  level = jnp.full(BATCH, SCRIPT["AUG_STEP"] / 1000)
  augmented = augment.augment(KEYS, FIXTURE["x"], level, SCHEDULE)
  np.testing.assert_allclose(augmented, FIXTURE["augmented"], atol=1e-6)
