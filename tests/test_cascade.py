"""A cascade's checks, and that pictures pass from stage to stage."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.cascade import Cascade
from imagen_jax.diffusion.gaussian import X
from imagen_jax.diffusion.guidance import NoThreshold
from imagen_jax.diffusion.samplers import LearnedAncestral
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import TextEmbedding


class Fake(nn.Module):
  """A net that answers fn(z, cond)."""

  fn: Callable
  stride: int = 1
  out_channels: int = 3

  @nn.compact
  def __call__(self, z, time, cond):
    return self.fn(z, cond)


def noise_and_text(z, cond):
  """Of the first step's noise, and of the text's first number."""
  return 0.2 * z + cond.text.tokens[:, 0, 0, None, None, None]


def repeated(x, factor):
  """Every pixel of x [B, H, W, C] as a square of factor x factor."""
  return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def enlarge(z, cond):
  return repeated(cond.lowres, z.shape[1] // cond.lowres.shape[1])


def make_stage(fn, size, lowres_size=None):
  return Stage(Fake(fn), size, prediction=X, lowres_size=lowres_size)


def make_cascade(*stages, **sampling):
  plain = {"steps": 1, "guidance": 1.0, "threshold": NoThreshold()}
  names = ("small", "middle", "large")[: len(stages)]
  return Cascade(names, stages, (Sampling(**plain | sampling),) * len(stages))


THREE = (
  make_stage(noise_and_text, 4),
  make_stage(enlarge, 8, 4),
  make_stage(enlarge, 32, 8),
)


def run(cascade, rows=slice(None)):
  """The cascade's pictures of (some of) three prompts, by stage name."""
  tokens = jnp.array([-0.3, 0.0, 0.3])[:, None, None] * jnp.ones((3, 2, 5))
  text = TextEmbedding(tokens[rows], jnp.ones((3, 2), bool)[rows])
  keys = jax.random.split(jax.random.key(0), 3)[rows]
  return dict(cascade.sample([{}] * len(cascade.stages), keys, text))


@pytest.fixture(scope="module")
def pictures():
  return run(make_cascade(*THREE))


def test_every_stage_gives_its_pictures_in_order(pictures):
  assert list(pictures) == ["small", "middle", "large"]
  assert [p.shape for p in pictures.values()] == [
    (3, side, side, 3) for side in (4, 8, 32)
  ]


def test_a_stage_enlarges_the_pictures_before_it(pictures):
  """Nets that repeat their low-res pixels, at aug_level 0."""
  assert np.abs(pictures["small"]).max() > 0.1
  for large, small, factor in (("middle", "small", 2), ("large", "middle", 4)):
    expected = repeated(pictures[small], factor)
    np.testing.assert_allclose(pictures[large], expected, atol=1e-6)


def test_a_picture_follows_its_own_prompt(pictures):
  means = pictures["large"].mean((1, 2, 3))
  np.testing.assert_allclose(means, [-0.3, 0.0, 0.3], atol=0.15)


def test_a_picture_does_not_depend_on_its_batch(pictures):
  alone = run(make_cascade(*THREE), slice(1, 2))
  for name, picture in alone.items():
    np.testing.assert_allclose(picture, pictures[name][1:2], atol=1e-6)


def test_stages_draw_different_noise():
  """Two stages of one size, which show the noise that they begin with."""
  same = make_stage(noise_and_text, 4, 4)
  one, two = run(make_cascade(make_stage(noise_and_text, 4), same)).values()
  assert np.abs(one - two).mean(axis=(1, 2, 3)).min() > 0.1


def test_stages_are_lazy():
  """The first picture can be shown before the next stage has begun."""

  def fails(z, cond):
    raise AssertionError("the second stage ran")

  cascade = make_cascade(THREE[0], make_stage(fails, 8, 4))
  text = TextEmbedding(jnp.zeros((1, 2, 5)), jnp.ones((1, 2), bool))
  keys = jax.random.split(jax.random.key(0), 1)
  name, _ = next(cascade.sample([{}, {}], keys, text))
  assert name == "small"


@pytest.mark.parametrize(
  ("stages", "message"),
  [
    ((), "a cascade has no stages"),
    (THREE[1:], "stage small has lowres_size 4, expected None"),
    ((THREE[0], THREE[0]), "stage middle has lowres_size None, expected 4"),
    ((THREE[0], THREE[2]), "stage middle has lowres_size 8, expected 4"),
    ((*THREE[:2], THREE[1]), "stage large has lowres_size 4, expected 8"),
  ],
)
def test_stages_that_do_not_chain(stages, message):
  with pytest.raises(ValueError, match=message):
    make_cascade(*stages)


def test_an_augmentation_level_beyond_what_was_trained():
  larger = dataclasses.replace(THREE[1], max_aug_level=0.3)
  make_cascade(THREE[0], larger, aug_level=0.3)
  with pytest.raises(
    ValueError, match="stage middle: sampling has aug_level 0.4"
  ):
    make_cascade(THREE[0], larger, aug_level=0.4)


def test_with_sampling_changes_every_stage_and_not_the_original():
  cascade = make_cascade(*THREE, aug_level=0.1)
  changed = cascade.with_sampling(steps=7, guidance=3.0)
  for old, new in zip(cascade.samplings, changed.samplings, strict=True):
    assert (old.steps, old.guidance, old.aug_level) == (1, 1.0, 0.1)
    assert (new.steps, new.guidance, new.aug_level) == (7, 3.0, 0.1)
    assert new.threshold == NoThreshold()
  assert changed.stages == cascade.stages
  assert changed.names == cascade.names


def test_steps_take_the_place_of_timesteps():
  cascade = make_cascade(*THREE, steps=None, timesteps=(999, 500, 1))
  changed = cascade.with_sampling(steps=7).samplings
  assert {(s.steps, s.timesteps) for s in changed} == {(7, None)}


def test_a_learned_variance_that_the_net_does_not_have():
  with pytest.raises(
    ValueError, match="stage small: sampling is with the learned variance, exp"
  ):
    make_cascade(THREE[0], step=LearnedAncestral())


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"steps": 0}, "steps is 0, expected at least 1"),
    ({"aug_level": 1.5}, "aug_level is 1.5, expected 0 to 1"),
  ],
)
def test_with_sampling_checks(changes, message):
  with pytest.raises(ValueError, match=message):
    make_cascade(*THREE).with_sampling(**changes)
