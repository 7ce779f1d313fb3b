"""Sampling through the interface: keys, batches, stages, values and callbacks.

Nets are small functions; tests/test_demo.py and tests/verbs sample real ones.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.cascade import Cascade, image_keys
from imagen_jax.diffusion.gaussian import X
from imagen_jax.diffusion.guidance import DynamicThreshold, NoThreshold
from imagen_jax.diffusion.samplers import DDIM, Ancestral
from imagen_jax.imagen import Imagen
from imagen_jax.parallel.mesh import make_mesh, replicated
from imagen_jax.progress import compilations
from imagen_jax.request import Row
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import TextEmbedding

PROMPTS = {"dark": -0.3, "grey": 0.0, "light": 0.3, "null": 0.1}


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


def upsample(z, cond):
  return repeated(cond.lowres, z.shape[1] // cond.lowres.shape[1])


def upsample_noisily(z, cond):
  return upsample(z, cond) + 0.5 * z.mean((1, 2, 3), keepdims=True)


def make_stage(fn, size, lowres_size=None):
  return Stage(Fake(fn), size, prediction=X, lowres_size=lowres_size)


def make_cascade(*stages, **sampling):
  plain = {"steps": 1, "guidance": 1.0, "threshold": NoThreshold()}
  names = ("small", "middle", "large")[: len(stages)]
  return Cascade(names, stages, (Sampling(**plain | sampling),) * len(stages))


THREE = (
  make_stage(noise_and_text, 4),
  make_stage(upsample, 8, 4),
  make_stage(upsample, 32, 8),
)


def encode(prompts, rows=None):
  """An encoder whose tokens are a prompt's number, its null text zeros."""
  values = np.array([PROMPTS.get(p, 0.0) for p in prompts], np.float32)
  tokens = values[:, None, None] * np.ones((1, 2, 5), np.float32)
  return TextEmbedding(tokens, np.ones(tokens.shape[:2], bool))


def make_imagen(cascade, *, devices=1, batch_size=2, log=None, **settings):
  log = [] if log is None else log

  def load(name):
    log.append(name)
    return {}

  return Imagen(
    cascade,
    load_net=load,
    load_encoder=lambda: log.append("text") or encode,
    devices=make_mesh(devices=jax.devices()[:devices]),
    batch_size=batch_size,
    **settings,
  )


@pytest.fixture(scope="module")
def imagen():
  return make_imagen(make_cascade(*THREE))


@pytest.fixture(scope="module")
def samples(imagen):
  return imagen.sample(["dark", "grey", "light"], progress=False)


def test_every_stage_gives_its_images_in_order(samples):
  assert list(samples.stages) == ["small", "middle", "large"]
  sizes = [stage.shape for stage in samples.stages.values()]
  assert sizes == [(3, side, side, 3) for side in (4, 8, 32)]
  assert samples.arrays is samples.stages["large"]
  assert samples.prompts == ("dark", "grey", "light")
  assert (samples.seeds, samples.indices) == ((0,) * 3, (0,) * 3)


def test_a_stage_upsamples_the_images_before_it(samples):
  """Nets that repeat their low-res pixels, at aug_level 0."""
  assert np.abs(samples.stages["small"]).max() > 0.1
  for large, small, factor in (("middle", "small", 2), ("large", "middle", 4)):
    expected = repeated(samples.stages[small], factor)
    np.testing.assert_allclose(samples.stages[large], expected, atol=1e-6)


def test_an_image_follows_its_own_prompt(samples):
  means = samples.arrays.mean((1, 2, 3))
  np.testing.assert_allclose(means, [-0.3, 0.0, 0.3], atol=0.15)


def test_an_image_does_not_depend_on_its_batch(imagen, samples):
  alone = imagen.sample("grey", progress=False)
  for name, images in alone.stages.items():
    np.testing.assert_array_equal(images, samples.stages[name][1:2])


def test_stages_draw_different_noise():
  """Two stages of one size, which show the noise that they begin with."""
  same = make_stage(noise_and_text, 4, 4)
  cascade = make_cascade(make_stage(noise_and_text, 4), same)
  one, two = make_imagen(cascade).sample("grey", progress=False).stages.values()
  assert np.abs(one - two).mean(axis=(1, 2, 3)).min() > 0.1


def test_the_key_of_an_image_is_that_of_its_seed_and_number():
  here = replicated(make_mesh(devices=jax.devices()[:1]))
  seeds = np.array([7, 7, 2**32 - 1], np.uint32)
  indices = np.array([0, 5, 1], np.int32)
  keys = image_keys(seeds, indices, np.int32(2), rows=here)
  for key, seed, index in zip(keys, seeds, indices, strict=True):
    expected = jax.random.fold_in(jax.random.key(int(seed)), int(index))
    assert key == jax.random.fold_in(expected, 2)


def test_image_by_number_and_by_list_of_seeds(imagen):
  many = imagen.sample("grey", num_images=3, seed=4, progress=False)
  assert many.indices == (0, 1, 2)
  one = imagen.sample("grey", index=2, seed=4, progress=False)
  np.testing.assert_array_equal(one.arrays, many.arrays[2:])
  some = imagen.sample("grey", index=[2, 0], seed=4, progress=False)
  np.testing.assert_array_equal(some.arrays, many.arrays[[2, 0]])
  assert some.indices == (2, 0)
  seeds = imagen.sample("grey", seed=[9, 4], progress=False)
  assert (seeds.seeds, seeds.indices) == ((9, 4), (0, 0))
  np.testing.assert_array_equal(seeds.arrays[1], many.arrays[0])
  assert np.abs(seeds.arrays[0] - seeds.arrays[1]).max() > 0.1


def test_a_part_of_the_cascade_gives_the_bits_of_the_whole(imagen, samples):
  some = ["dark", "grey", "light"]
  first = imagen.sample(some, stages=(None, "middle"), progress=False)
  assert list(first.stages) == ["small", "middle"]
  np.testing.assert_array_equal(first.arrays, samples.stages["middle"])
  last = imagen.sample(
    some, stages=("large", None), image=list(first.arrays), progress=False
  )
  assert list(last.stages) == ["large"]
  np.testing.assert_array_equal(last.arrays, samples.arrays)


def test_other_values_compile_nothing():
  """Of guidance, steps, aug_level, gamma, percentile, seed and prompts."""
  stages = THREE[0], make_stage(upsample_noisily, 8, 4)
  make = lambda gamma, p, aug: make_imagen(
    make_cascade(
      *stages, steps=3, guidance=2.0, aug_level=aug,
      step=Ancestral(gamma), threshold=DynamicThreshold(p),
    )
  )  # fmt: skip
  plain = make(0.0, 99.0, 0.1).sample("dark", progress=False)
  with compilations() as found:
    other = make(0.5, 90.0, 0.4)
    same = make(0.0, 99.0, 0.1)
    changed = [
      other.sample("dark", progress=False),
      same.sample("dark", seed=1, progress=False),
      same.sample("dark", guidance=3, progress=False),
      same.sample("dark", steps=50, progress=False),
      same.sample("dark", steps={"middle": 2}, progress=False),
      same.sample(["dark", "light", "grey"], num_images=2, progress=False),
    ]
    again = same.sample("dark", guidance=2, steps=3, progress=False)
  assert found.count == 0
  np.testing.assert_array_equal(again.arrays, plain.arrays)
  for samples in changed[:-1]:
    assert np.abs(samples.arrays - plain.arrays).max() > 1e-3
  with compilations() as found:  # no guidance is another program
    same.sample("dark", guidance=1.0, progress=False)
  assert found.count == 2


def test_one_number_guides_the_stages_that_guide():
  cascade = make_cascade(*THREE[:2], guidance=2.0)
  base, larger = cascade.samplings
  cascade = dataclasses.replace(
    cascade, samplings=(base, larger.replace(guidance=1.0))
  )
  imagen = make_imagen(cascade)
  rows = [Row(0, 0, 0)]
  weights = lambda guidance: [
    sampling.guidance
    for sampling in imagen.request(["grey"], rows, guidance=guidance).samplings
  ]
  assert weights(None) == [2.0, 1.0]
  assert weights(5) == [5, 1.0]
  assert weights([5.0, 3.0]) == [5.0, 3.0]
  assert weights({"middle": 3.0}) == [2.0, 3.0]
  assert weights({"small": 1.0}) == [1.0, 1.0]


def test_guidance_leads_away_from_the_negative_prompt():
  """x_hat = w cond + (1 - w) uncond, of nets that answer with their text."""
  cascade = make_cascade(THREE[0], guidance=3.0)
  imagen = make_imagen(cascade)
  draw = lambda **changes: (
    imagen.sample(["dark", "light"], progress=False, **changes).arrays
  )
  plain = draw()
  for negative, moved in ((["null", "grey"], [0.1, 0.0]), ("null", [0.1, 0.1])):
    expected = -2.0 * np.array(moved)[:, None, None, None]
    inside = np.abs(plain + expected) < 0.99  # the rest was clipped
    inside &= np.abs(plain) < 0.99
    difference = draw(negative_prompt=negative) - plain
    expected = np.broadcast_to(expected, difference.shape)
    np.testing.assert_allclose(difference[inside], expected[inside], atol=1e-5)


def test_without_prompts_the_text_is_the_null_text(imagen):
  found = imagen.sample(None, num_images=2, progress=False)
  assert found.prompts == (None, None)
  np.testing.assert_allclose(
    found.arrays,
    imagen.sample("grey", num_images=2, progress=False).arrays,  # zeros too
    atol=1e-6,
  )
  with pytest.raises(ValueError, match="guidance is 3.0 without prompts, exp"):
    imagen.sample(None, guidance=3.0)


def test_the_callback_sees_every_nth_step_and_the_last():
  cascade = make_cascade(THREE[0], steps=6, step=DDIM())
  imagen, seen = make_imagen(cascade), []
  see = lambda *given: seen.append(given)
  samples = imagen.sample(
    ["dark", "grey", "light"], callback=see, callback_every=2, progress=False
  )
  steps = [("small", step) for step in (0, 2, 4, 5)]
  assert [(name, step) for name, step, _ in seen] == 2 * steps
  assert [len(x_hat) for *_, x_hat in seen] == 4 * [2] + 4 * [1]
  ends = np.concatenate([seen[3][2], seen[7][2]])
  np.testing.assert_array_equal(ends, samples.arrays)
  unseen = imagen.sample(["dark", "grey", "light"], progress=False)
  np.testing.assert_array_equal(unseen.arrays, samples.arrays)


def test_parts_are_read_once_or_for_each_use():
  log, prompts = [], ["dark", "grey", "light"]
  imagen = make_imagen(make_cascade(*THREE[:2]), log=log)
  assert log == []
  imagen.sample(prompts, progress=False)
  imagen.sample(prompts, text=imagen.encode(prompts), progress=False)
  assert log == ["text", "small", "middle"]
  imagen.release("small")
  imagen.sample(prompts, progress=False)
  assert log == ["text", "small", "middle", "small"]
  with pytest.raises(ValueError, match="part is 'tiny', expected one of small"):
    imagen.release("tiny")
  log.clear()
  kept = imagen.sample(prompts, progress=False).arrays
  imagen = make_imagen(make_cascade(*THREE[:2]), log=log, offload=True)
  found = imagen.sample(prompts, progress=False).arrays
  np.testing.assert_array_equal(found, kept)
  assert log == ["text", "small", "middle"]  # once for both batches
  imagen.sample(prompts, progress=False)
  assert log == ["text", "small", "middle"] * 2


def test_stream_gives_each_batch_when_it_is_finished():
  """The first image can be shown before the next batch has begun."""
  log = []
  imagen = make_imagen(make_cascade(*THREE[:2]), batch_size=1)
  see = lambda name, step, x_hat: log.append(name)
  rows = [Row(1, 3, 0), Row(0, 3, 7)]
  parts = imagen.stream(["dark", "light"], rows, callback=see, progress=False)
  first = next(parts)
  assert log == ["small", "middle"]
  assert (first.prompts, first.seeds, first.indices) == (("light",), (3,), (0,))
  second = next(parts)
  assert (second.prompts, second.indices) == (("dark",), (7,))
  assert log == ["small", "middle"] * 2


def test_rows_are_spread_over_devices(samples):
  """The batch becomes a multiple of the devices; images stay the same."""
  imagen = make_imagen(make_cascade(*THREE), devices=4, batch_size=2)
  assert imagen.batch_size == 4
  found = imagen.sample(["dark", "grey", "light"], progress=False)
  np.testing.assert_allclose(found.arrays, samples.arrays, atol=1e-6)
  found = imagen.sample(["dark", "grey", "light"], batch_size=3, progress=False)
  np.testing.assert_allclose(found.arrays, samples.arrays, atol=1e-6)


def test_images_that_are_not_finite_are_an_error():
  nan = make_stage(lambda z, cond: z * jnp.nan, 8, 4)
  imagen = make_imagen(make_cascade(THREE[0], nan))
  with pytest.raises(ValueError, match="^the images of stage middle are not"):
    imagen.sample("grey", progress=False)
