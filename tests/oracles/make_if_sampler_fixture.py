"""Makes if_samplers.safetensors with diffusers' schedulers and torch.

  python tests/oracles/make_if_sampler_fixture.py

Needs torch and diffusers. Its inputs, noise included, come from a numpy seed;
they and the outputs are what is stored, images as [B, H, W, C]. The sampler
is DeepFloyd IF's, with the cap of its first stage's threshold and its second's.
"""

import pathlib
from unittest import mock

import numpy as np
import safetensors.numpy

PATH = pathlib.Path(__file__).with_name("if_samplers.safetensors")
SHAPE = (3, 5, 4, 3)
TABLE = {"beta_schedule": "squaredcos_cap_v2"}
CAPS = (1.5, 1.0)
# The steps of a list of diffusers', by their position in it; of 100 uniform
# ones those of "leading".
STEPS = {
  "smart27": (0, 7, 18, 25, 26),
  "fast27": (0, 1, 10, 25, 26),
  "uniform100": (0, 50, 98, 99),
}
AUG_STEP = 250  # DeepFloyd IF's for its second stage
LARGE = (16, 13)
SOLVER_STEPS = (7, 20, 25)


def make_inputs(seed: int = 0) -> dict[str, np.ndarray]:
  """Images, noises, and what a net is wrong by, all of SHAPE."""
  rng = np.random.RandomState(seed)  # its streams never change, unlike newer
  names = ("eps", "error", "v", "noise", "z_1")
  inputs = {name: rng.randn(*SHAPE) for name in names}
  # Whether the threshold, or its cap, binds, is different for every example.
  scale = np.array([0.4, 1.1, 3.0]).reshape(3, 1, 1, 1)
  inputs["x"] = scale * rng.uniform(-1, 1, SHAPE)
  inputs["v"] = np.tanh(inputs["v"])
  return {name: value.astype(np.float32) for name, value in inputs.items()}


def noised(inputs: dict[str, np.ndarray], alpha_bar: float) -> np.ndarray:
  """z_t of the inputs' x and eps."""
  z_t = (
    np.sqrt(alpha_bar) * inputs["x"] + np.sqrt(1 - alpha_bar) * inputs["eps"]
  )
  return z_t.astype(np.float32)


def net(inputs: dict[str, np.ndarray]) -> np.ndarray:
  """A net's six channels: an eps that is wrong by a little, and v."""
  return np.concatenate(
    [inputs["eps"] + 0.1 * inputs["error"], inputs["v"]], axis=-1
  )


def denoise(z, module=np):
  """A fixed x_hat of z, by the functions of numpy, or of jax.numpy."""
  return 0.7 * module.tanh(1.5 * z) + 0.2 * module.cos(3.0 * z)


def ancestral_steps(inputs) -> dict[str, np.ndarray]:
  """{list/position/cap/z_s or x_hat} of DDPMScheduler, and its table."""
  import torch
  from diffusers import DDPMScheduler
  from diffusers.pipelines.deepfloyd_if import timesteps
  from diffusers.schedulers import scheduling_ddpm

  outputs = {}
  for cap in CAPS:
    scheduler = DDPMScheduler(
      **TABLE,
      variance_type="learned_range",
      thresholding=True,
      dynamic_thresholding_ratio=0.95,
      sample_max_value=cap,
    )
    outputs["alpha_bar"] = scheduler.alphas_cumprod.numpy()
    for name, positions in STEPS.items():
      if name == "uniform100":
        scheduler.set_timesteps(100)
      else:
        steps = getattr(timesteps, f"{name}_timesteps")
        scheduler.set_timesteps(timesteps=steps)
      outputs[f"{name}/steps"] = scheduler.timesteps.numpy().astype(np.int32)
      for i in positions:
        step = int(scheduler.timesteps[i])
        z_t = noised(inputs, outputs["alpha_bar"][step])
        with (
          mock.patch.object(
            scheduling_ddpm,
            "randn_tensor",
            lambda *_, **__: to_torch(inputs["noise"]),
          ),
          torch.no_grad(),
        ):
          made = scheduler.step(to_torch(net(inputs)), step, to_torch(z_t))
        where = f"{name}/{i}/{cap}"
        outputs[f"{where}/z_s"] = from_torch(made.prev_sample)
        outputs[f"{where}/x_hat"] = from_torch(made.pred_original_sample)
  return outputs


def solver_steps(inputs) -> dict[str, np.ndarray]:
  """{solver/n/steps and x_hat [n, ...]} of DPMSolverMultistepScheduler."""
  from diffusers import DPMSolverMultistepScheduler

  outputs = {}
  for n in SOLVER_STEPS:
    scheduler = DPMSolverMultistepScheduler(
      **TABLE,
      algorithm_type="dpmsolver++",
      solver_order=2,
      prediction_type="sample",
      lambda_min_clipped=-5.1,
    )
    scheduler.set_timesteps(n)
    z, found = to_torch(inputs["z_1"][:1]), []
    for step in scheduler.timesteps:
      found.append(denoise(from_torch(z)))
      z = scheduler.step(to_torch(found[-1]), step, z).prev_sample
    np.testing.assert_allclose(from_torch(z), found[-1], atol=1e-6)
    outputs[f"solver/{n}/steps"] = scheduler.timesteps.numpy().astype(np.int32)
    outputs[f"solver/{n}/x_hat"] = np.stack(found).astype(np.float32)
  return outputs


def second_stage(inputs) -> dict[str, np.ndarray]:
  """What IF does to its low-res image: upsampled, and then noised."""
  import torch
  from diffusers import DDPMScheduler

  large = torch.nn.functional.interpolate(
    to_torch(inputs["x"]), LARGE, mode="bilinear", align_corners=True
  )
  noised = DDPMScheduler(**TABLE).add_noise(
    to_torch(inputs["x"]), to_torch(inputs["noise"]), torch.tensor([AUG_STEP])
  )
  return {"large": from_torch(large), "augmented": from_torch(noised)}


def to_torch(x: np.ndarray):
  """[B, H, W, C] -> torch's [B, C, H, W]."""
  import torch

  return torch.tensor(np.moveaxis(x, -1, 1))


def from_torch(x) -> np.ndarray:
  """The other way round."""
  return np.ascontiguousarray(np.moveaxis(x.numpy(), 1, -1))


def make_fixture() -> dict[str, np.ndarray]:
  """The whole fixture: inputs and outputs."""
  inputs = make_inputs()
  parts = (ancestral_steps, solver_steps, second_stage)
  outputs = [part(inputs) for part in parts]
  return {k: v for part in (inputs, *outputs) for k, v in part.items()}


if __name__ == "__main__":
  safetensors.numpy.save_file(make_fixture(), PATH)
  print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB")
