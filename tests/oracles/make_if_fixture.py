"""Makes deepfloyd_if.safetensors with diffusers' UNet2DConditionModel.

  python tests/oracles/make_if_fixture.py

Needs torch and diffusers. The nets have the block types of DeepFloyd IF's
published ones: IF-I, IF-II with self-attention (L), and IF-II with attention
to text alone (M). Their weights come from a numpy seed per tensor, so that
configs, inputs and outputs are all that is stored.

The sizes are chosen to show mix-ups: images are not square, the widths of
time, text and channels differ, and the scales of norms are far from one.
"""

import json
import math
import pathlib
import zlib

import numpy as np
import safetensors.numpy

PATH = pathlib.Path(__file__).with_name("deepfloyd_if.safetensors")
DOWN = {"-": "ResnetDownsampleBlock2D", "+": "SimpleCrossAttnDownBlock2D"}
UP = {"-": "ResnetUpsampleBlock2D", "+": "SimpleCrossAttnUpBlock2D"}
SHARED = {
  "_class_name": "UNet2DConditionModel",
  "act_fn": "gelu",
  "addition_embed_type": "text",
  "addition_embed_type_num_heads": 6,
  "attention_head_dim": 8,
  "cross_attention_norm": "group_norm",
  "encoder_hid_dim": 48,
  "encoder_hid_dim_type": "text_proj",
  "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
  "norm_num_groups": 8,
  "out_channels": 6,
  "resnet_time_scale_shift": "scale_shift",
}
SECOND = {
  "in_channels": 6,
  "class_embed_type": "timestep",
  "time_embedding_act_fn": "gelu",
  "time_embedding_dim": 40,
  "resnet_skip_time_act": True,
  "resnet_out_scale_factor": 1.4142271248762552,
  "mid_block_scale_factor": 1.4142271248762552,
}


def config(levels: str, **settings) -> dict:
  """config.json of a net whose levels have attention (+) or not (-)."""
  return SHARED | {
    "down_block_types": [DOWN[level] for level in levels],
    "up_block_types": [UP[level] for level in reversed(levels)],
    **settings,
  }


CONFIGS = {
  "if_1": config(
    "-++",
    sample_size=64,
    in_channels=3,
    block_out_channels=[16, 32, 48],
    layers_per_block=2,
    cross_attention_dim=64,
    time_embedding_dim=56,
  ),
  "if_2_l": config(
    "--++",
    sample_size=256,
    block_out_channels=[16, 32, 48, 64],
    layers_per_block=[1, 1, 1, 2],
    cross_attention_dim=96,
    **SECOND,
  ),
  "if_2_m": config(
    "--+",
    sample_size=256,
    block_out_channels=[16, 32, 64],
    layers_per_block=[2, 1, 3],
    cross_attention_dim=64,
    only_cross_attention=True,
    **SECOND,
  ),
}
SIZES = {"if_1": (12, 20), "if_2_l": (16, 24), "if_2_m": (20, 12)}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A tensor of diffusers' name and shape, which alone determine its values."""
  rng = np.random.RandomState(zlib.crc32(name.encode()))
  noise = rng.randn(*shape)
  if "norm" in name:
    noise = noise * 0.3 + (1.0 if name.endswith("weight") else 0.0)
  elif name.endswith("bias"):
    noise *= 0.2
  elif len(shape) > 1 and "positional" not in name:
    noise /= math.sqrt(math.prod(shape[1:]))
  if name.startswith("conv_out"):
    noise *= 0.3  # eps and v of about the size that trained nets give
  return noise.astype(np.float32)


def make_inputs(name: str) -> dict[str, np.ndarray]:
  """z [2, C, H, W], time [2], text [2, 7, 48] and, of IF-II, aug [2]."""
  rng = np.random.RandomState(zlib.crc32(name.encode()))
  channels = CONFIGS[name]["in_channels"]
  inputs = {
    "z": rng.randn(2, channels, *SIZES[name]),
    "time": np.array([981.0, 37.0]),
    "text": rng.randn(2, 7, SHARED["encoder_hid_dim"]) * 0.3,
  }
  if "class_embed_type" in CONFIGS[name]:
    inputs["aug"] = np.array([250.0, 90.0])
  return {key: value.astype(np.float32) for key, value in inputs.items()}


def make_net(name: str):
  """diffusers' net with the weights of this file."""
  import torch
  from diffusers import UNet2DConditionModel

  settings = {k: v for k, v in CONFIGS[name].items() if k != "_class_name"}
  net = UNet2DConditionModel(**settings).eval()
  state = {
    key: torch.tensor(weight(key, tuple(value.shape)))
    for key, value in net.state_dict().items()
  }
  net.load_state_dict(state, strict=True)
  return net


def run(net, inputs: dict[str, np.ndarray]) -> np.ndarray:
  """diffusers' output [2, 6, H, W]."""
  import torch

  inputs = {key: torch.tensor(value) for key, value in inputs.items()}
  with torch.no_grad():
    return net(
      inputs["z"],
      inputs["time"],
      encoder_hidden_states=inputs["text"],
      class_labels=inputs.get("aug"),
    ).sample.numpy()


def make_fixture() -> dict[str, np.ndarray]:
  """Inputs and outputs of every net."""
  fixture = {}
  for name in CONFIGS:
    inputs = make_inputs(name)
    fixture |= {f"{name}/{key}": value for key, value in inputs.items()}
    fixture[f"{name}/output"] = run(make_net(name), inputs)
  return fixture


if __name__ == "__main__":
  metadata = {name: json.dumps(value) for name, value in CONFIGS.items()}
  safetensors.numpy.save_file(make_fixture(), PATH, metadata)
  print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB")
