"""DeepFloyd IF's two stages as a Cascade, and diffusers' images of them."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from imagen_jax.cascade import Cascade
from imagen_jax.diffusion.augment import bilinear_aligned
from imagen_jax.diffusion.guidance import DynamicThreshold
from imagen_jax.diffusion.samplers import LearnedAncestral, fold_in
from imagen_jax.diffusion.sampling import Sampling
from imagen_jax.diffusion.schedules import DiscreteCosineSchedule
from imagen_jax.interop import diffusers
from imagen_jax.stage import Stage
from imagen_jax.types import TextEmbedding

ORACLES = pathlib.Path(__file__).parents[1] / "oracles"
MADE = runpy.run_path(str(ORACLES / "make_if_cascade_fixture.py"))
NETS = MADE["NETS"]


def stage(name: str, size: int, lowres_size: int | None) -> Stage:
  return Stage(
    diffusers.unet(NETS["CONFIGS"][name]),
    size=size,
    lowres_size=lowres_size,
    upsample=bilinear_aligned,
    schedule=DiscreteCosineSchedule(),
    aug_schedule=DiscreteCosineSchedule(),
  )


def sampling(steps, guidance, cap) -> Sampling:
  return Sampling(
    timesteps=steps,
    guidance=guidance,
    step=LearnedAncestral(),
    threshold=DynamicThreshold(95.0, cap),
    aug_level=MADE["AUG_STEP"] / 1000,
  )


def params(stage: Stage, tmp_path: pathlib.Path):
  """The weights of the scripts, through a file of diffusers' layout."""
  width = NETS["SHARED"]["encoder_hid_dim"]
  init = lambda: stage.init(jax.random.key(0), text_length=7, text_dim=width)
  like = jax.eval_shape(init)
  state = {
    name: NETS["weight"](name, shape)
    for name, shape in diffusers.diffusers_shapes(like).items()
  }
  folder = tmp_path / str(stage.size)
  folder.mkdir()
  path = folder / f"{diffusers.STEM}.safetensors"
  safetensors.numpy.save_file(state, path)
  return diffusers.load(folder, like)


@pytest.fixture(scope="module")
def fixture():
  return safetensors.numpy.load_file(MADE["PATH"])


def test_the_pictures_are_those_of_diffusers(fixture, tmp_path):
  names, sizes, *settings = zip(*MADE["STAGES"], strict=True)
  stages = tuple(map(stage, names, sizes, (None, *sizes)))
  cascade = Cascade(names, stages, tuple(map(sampling, *settings)))
  seen = jnp.ones(fixture["tokens"].shape[:2], bool)
  text = TextEmbedding(
    fixture["tokens"], seen, TextEmbedding(fixture["null"], seen)
  )
  keys = jax.random.split(jax.random.key(MADE["SEED"]), MADE["BATCH"])
  weights = [params(stage, tmp_path) for stage in stages]
  with jax.default_matmul_precision("highest"):
    pictures = None
    for i, name in enumerate(cascade.names):
      pictures = stages[i].sample(
        weights[i],
        fold_in(keys, i),
        text,
        pictures,
        sampling=cascade.samplings[i],
      )
      expected = np.moveaxis(fixture[name], 1, -1)
      assert expected.std() > 0.3
      np.testing.assert_allclose(pictures, expected, rtol=0, atol=1e-3)
