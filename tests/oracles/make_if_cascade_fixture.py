"""Makes deepfloyd_if_cascade.safetensors: a guided cascade by diffusers.

  python tests/oracles/make_if_cascade_fixture.py

Needs torch and diffusers. Two of make_if_fixture.py's nets with diffusers'
DDPMScheduler, put together as its pipelines for DeepFloyd IF do: text and the
null prompt in one batch, the variance of the text's half, thresholds, the
low-res image upsampled with aligned corners and noised then. The noise is that
of JAX's keys, in our order, so that the images can be compared.
"""

import pathlib
import runpy

import jax
import numpy as np
import safetensors.numpy

PATH = pathlib.Path(__file__).with_name("deepfloyd_if_cascade.safetensors")
NETS = runpy.run_path(
  str(pathlib.Path(__file__).with_name("make_if_fixture.py"))
)
BATCH, LENGTH, SEED = 2, 7, 3
# net, side, timesteps, guidance, cap of the threshold
STAGES = (
  ("if_1", 16, (990, 810, 550, 300, 120, 0), 7.0, 1.5),
  ("if_2_l", 32, (900, 600, 250, 0), 4.0, 1.0),
)
AUG_STEP = 250


def make_text() -> dict[str, np.ndarray]:
  """tokens of the prompts and of the null prompt, [B, L, D]."""
  rng = np.random.RandomState(5)
  width = NETS["SHARED"]["encoder_hid_dim"]
  tokens = 0.3 * rng.randn(BATCH, LENGTH, width)
  null = np.repeat(0.3 * rng.randn(1, LENGTH, width), BATCH, axis=0)
  return {"tokens": np.float32(tokens), "null": np.float32(null)}


def keys_of(stage: int) -> jax.Array:
  """One key per image, as Cascade.sample gives them to a stage."""
  keys = jax.random.split(jax.random.key(SEED), BATCH)
  return fold_in(keys, stage)


def fold_in(keys: jax.Array, number: int) -> jax.Array:
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def normal(keys: jax.Array, side: int):
  """Noise [B, 3, side, side] of our keys."""
  import torch

  draw = jax.vmap(lambda key: jax.random.normal(key, (side, side, 3)))
  return torch.tensor(np.array(draw(keys))).permute(0, 3, 1, 2)


def run_stage(index: int, text: dict[str, np.ndarray], lowres):
  """Images [B, 3, side, side] of a stage, as a tensor."""
  import torch
  from diffusers import DDPMScheduler
  from diffusers.schedulers import scheduling_ddpm

  name, side, steps, guidance, cap = STAGES[index]
  net, keys = NETS["make_net"](name), keys_of(index)
  aug, loop = fold_in(keys, 0), fold_in(keys, 1)
  scheduler = DDPMScheduler(
    beta_schedule="squaredcos_cap_v2",
    prediction_type="epsilon",
    variance_type="learned_range",
    thresholding=True,
    dynamic_thresholding_ratio=0.95,
    sample_max_value=cap,
  )
  scheduler.set_timesteps(timesteps=list(steps))
  both = torch.tensor(np.concatenate([text["null"], text["tokens"]]))
  labels = None
  if lowres is not None:
    lowres = torch.nn.functional.interpolate(
      lowres, size=(side, side), mode="bilinear", align_corners=True
    )
    level = torch.full((BATCH,), AUG_STEP)
    lowres = scheduler.add_noise(lowres, normal(aug, side), level)
    labels = torch.cat([level, level])
  z = normal(fold_in(loop, 0), side)
  for i, step in enumerate(scheduler.timesteps, start=1):
    noise = normal(fold_in(loop, i), side)
    scheduling_ddpm.randn_tensor = lambda *_, noise=noise, **__: noise
    given = z if lowres is None else torch.cat([z, lowres], 1)
    with torch.no_grad():
      out = net(
        torch.cat([given, given]),
        step,
        encoder_hidden_states=both,
        class_labels=labels,
      ).sample
    (null, _), (eps, variance) = (half.split(3, 1) for half in out.chunk(2))
    eps = null + guidance * (eps - null)
    z = scheduler.step(torch.cat([eps, variance], 1), step, z).prev_sample
  return z.clamp(-1, 1)


def make_fixture() -> dict[str, np.ndarray]:
  """The text, and the images of both stages, [B, 3, side, side]."""
  text, pictures = make_text(), None
  fixture = dict(text)
  for i, (name, *_) in enumerate(STAGES):
    pictures = run_stage(i, text, pictures)
    fixture[name] = pictures.contiguous().numpy()
  return fixture


if __name__ == "__main__":
  safetensors.numpy.save_file(make_fixture(), PATH)
  print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB")
