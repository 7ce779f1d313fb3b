"""DeepFloyd IF's first and second net in diffusers' layout, and back.

A folder of diffusers' `unet` holds config.json, which says what net it is, and
its tensors as safetensors. Every net of IF is a UNet with other settings than
the paper's (shared blocks, exact GELU, GroupNorm on text, learned variance);
a config.json that asks for what these nets do not have is refused.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_jax.interop import hub
from imagen_jax.interop.tensors import Tensor, check, place
from imagen_jax.interop.unet_names import diffusers_names, layout_of
from imagen_jax.nets.layers import gelu, text_group_norm
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.sharding import Placement

CONFIG, STEM = hub.CONFIG, "diffusion_pytorch_model"
ACTIVATIONS = {"gelu": gelu, "silu": nn.swish, "swish": nn.swish}
# A level's blocks, with attention and without: on the way down, on that up.
_DOWN = ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D")
_UP = ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D")
# What the UNet is, whatever its settings: diffusers' key, value and default.
_FIXED = {
  "_class_name": ("UNet2DConditionModel", None),
  "center_input_sample": (False, False),
  "flip_sin_to_cos": (True, True),
  "freq_shift": (0, 0),
  "mid_block_type": (
    "UNetMidBlock2DSimpleCrossAttn",
    "UNetMidBlock2DCrossAttn",
  ),
  "dropout": (0, 0),
  "norm_eps": (1e-5, 1e-5),
  "encoder_hid_dim_type": ("text_proj", "text_proj"),
  "num_attention_heads": (None, None),
  "addition_embed_type": ("text", None),
  "resnet_time_scale_shift": ("scale_shift", "default"),
  "cross_attention_norm": ("group_norm", None),
  "time_embedding_type": ("positional", "positional"),
  "timestep_post_act": (None, None),
  "time_cond_proj_dim": (None, None),
  "class_embeddings_concat": (False, False),
  "conv_in_kernel": (3, 3),
  "conv_out_kernel": (3, 3),
}


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
  """config.json of a folder; ValueError, naming it, if it cannot be read."""
  path = epath.Path(folder) / CONFIG
  try:
    config = json.loads(path.read_text())
  except OSError as error:
    raise ValueError(f"{path} cannot be read: {error.strerror}") from error
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}") from error
  if not isinstance(config, dict):
    raise ValueError(f"{path} has no settings, expected those of a UNet")
  return config


def unet(config: Mapping[str, Any], *, dtype: Any = jnp.float32) -> UNet:
  """The net that a config.json describes.

  ValueError that names the key of what no net of DeepFloyd IF has.
  """
  for key, (value, default) in _FIXED.items():
    found = config.get(key, default)
    if found != value and not (key == "encoder_hid_dim_type" and not found):
      raise _refused(key, found, repr(value))
  text_only = config.get("only_cross_attention", False)
  if not isinstance(text_only, bool):
    raise _refused("only_cross_attention", text_only, "true or false")
  channels = _integers(config, "block_out_channels")
  levels, size = len(channels), config.get("sample_size")
  if not isinstance(size, int):
    raise _refused("sample_size", size, "the side of the pictures")
  if any(width % channels[0] for width in channels):
    raise _refused(
      "block_out_channels", channels, "multiples of the first of them"
    )
  attended = [size // 2**i for i in _attended_levels(config, levels)]
  return UNet(
    image_size=size,
    embed_dim=channels[0],
    channel_mult=tuple(width // channels[0] for width in channels),
    num_res_blocks=_integers(config, "layers_per_block", levels),
    attn_resolutions=() if text_only else tuple(attended),
    text_cross_attn_res=tuple(attended),
    per_head_channels=_integer(config, "attention_head_dim"),
    text_width=_integer(config, "cross_attention_dim"),
    norm_groups=config.get("norm_num_groups", 32),
    out_channels=_integer(config, "out_channels"),
    emb_width=config.get("time_embedding_dim") or 4 * channels[0],
    pool_head_channels=_integer(config, "encoder_hid_dim")
    // config.get("addition_embed_type_num_heads", 64),
    residual_scale=_residual_scale(config),
    activation=_activation(config),
    text_norm=text_group_norm,
    dtype=dtype,
  )


def config_of(net: UNet, params: Any) -> dict[str, Any]:
  """The config.json of a net and its parameters (arrays or shapes)."""
  sizes = [net.resolution(i) for i in range(len(net.channel_mult))]
  kinds = [int(size not in net.text_cross_attn_res) for size in sizes]
  activation = {fn: name for name, fn in ACTIVATIONS.items()}[net.activation]
  with_level = "aug_mlp" in params["combine_embs"]
  text_dim = params["text"]["dense"]["kernel"].shape[0]
  scale = round(1 / net.residual_scale, 15)
  return {key: value for key, (value, _) in _FIXED.items()} | {
    "sample_size": net.image_size,
    "in_channels": params["conv_in"]["kernel"].shape[2],
    "out_channels": net.out_channels,
    "down_block_types": [_DOWN[kind] for kind in kinds],
    "up_block_types": [_UP[kind] for kind in reversed(kinds)],
    "only_cross_attention": not net.attn_resolutions,
    "block_out_channels": [net.embed_dim * m for m in net.channel_mult],
    "layers_per_block": list(net.blocks),
    "act_fn": activation,
    "norm_num_groups": net.norm_groups,
    "cross_attention_dim": net.text_width,
    "encoder_hid_dim": text_dim,
    "attention_head_dim": net.per_head_channels,
    "addition_embed_type_num_heads": text_dim // net.pool_head_channels,
    "class_embed_type": "timestep" if with_level else None,
    "time_embedding_dim": net.emb_width,
    "time_embedding_act_fn": activation,
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": scale,
    "mid_block_scale_factor": scale,
  }


def load(
  folder: str | os.PathLike, like: Any, placement: Placement | None = None
) -> Any:
  """A net's parameters in the tree and dtypes of `like` (shapes), placed.

  ValueError that names all at once the tensors that lack, are unknown or
  misshaped, or the file that is missing, damaged or a pickle.
  """
  return place(tensors(folder, like), like, placement)


def tensors(folder: str | os.PathLike, like: Any) -> dict[str, Tensor]:
  """A net's tensors by our paths, of the shapes of `like`, not yet read.

  A net of half the outputs has eps and no variance: the first half of them.
  """
  wanted = flax.traverse_util.flatten_dict(like, sep="/")
  names, shapes = diffusers_names(wanted), diffusers_shapes(like)
  path = epath.Path(folder)
  found = hub.tensors(path, STEM)
  for name in ("conv_out.weight", "conv_out.bias"):
    if name in found and found[name].shape[:1] == (2 * shapes[name][0],):
      found[name] = found[name].first(shapes[name][0])
  check(path, found, shapes)
  return {
    ours: layout_of(ours, leaf.shape).ours(found[names[ours]], leaf.shape)
    for ours, leaf in wanted.items()
  }


def save(folder: str | os.PathLike, net: UNet, params: Any) -> None:
  """Writes config.json and the tensors, which diffusers' loader reads.

  Numbers stay as they are. ValueError if they cannot be written, and for a net
  that is not as DeepFloyd IF's are.
  """
  if not isinstance(net, UNet) or net.text_norm is not text_group_norm:
    raise ValueError(
      "diffusers has no such net, expected a UNet with text_norm group, as "
      "DeepFloyd IF's are"
    )
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  state = {
    name: np.ascontiguousarray(
      layout_of(ours, flat[ours].shape).theirs(np.asarray(flat[ours]))
    )
    for ours, name in diffusers_names(flat).items()
  }
  hub.save(folder, state, config_of(net, params), STEM)


def diffusers_shapes(like: Any) -> dict[str, tuple[int, ...]]:
  """Names and shapes of a net's tensors as diffusers has them."""
  flat = flax.traverse_util.flatten_dict(like, sep="/")
  return {
    name: layout_of(ours, flat[ours].shape).shape(flat[ours].shape)
    for ours, name in diffusers_names(flat).items()
  }


def _refused(key: str, found: Any, expected: str) -> ValueError:
  return ValueError(
    f"{CONFIG} has {key} {found!r}, expected {expected}, as DeepFloyd IF's "
    "first and second nets have it"
  )


def _integer(config: Mapping[str, Any], key: str) -> int:
  value = config.get(key)
  if not isinstance(value, int) or value < 1:
    raise _refused(key, value, "a number")
  return value


def _integers(
  config: Mapping[str, Any], key: str, levels: int | None = None
) -> tuple[int, ...]:
  """One number per level; one alone is for all of them."""
  value = config.get(key)
  if isinstance(value, int) and levels:
    return (value,) * levels
  good = isinstance(value, list | tuple) and all(
    isinstance(n, int) for n in value
  )
  if not good or not value or len(value) != (levels or len(value)):
    raise _refused(key, value, f"{levels or 'some'} numbers")
  return tuple(value)


def _attended_levels(config: Mapping[str, Any], levels: int) -> list[int]:
  """The levels with attention, the last of them among these."""
  down, up = (config.get(f"{side}_block_types") for side in ("down", "up"))
  kinds = [_DOWN.index(kind) for kind in down or () if kind in _DOWN]
  if len(kinds) != levels or len(down) != levels or kinds[-1]:
    raise _refused(
      "down_block_types", down, f"{levels} of {_DOWN}, the last the first one"
    )
  if list(up or ()) != [_UP[kind] for kind in reversed(kinds)]:
    raise _refused("up_block_types", up, "those of down_block_types, reversed")
  return [i for i, kind in enumerate(kinds) if not kind]


def _activation(config: Mapping[str, Any]) -> Any:
  """The one activation; of the sum of embeddings too, whoever applies it."""
  name = config.get("act_fn", "silu")
  if name not in ACTIVATIONS:
    raise _refused("act_fn", name, f"one of {', '.join(ACTIVATIONS)}")
  outside = config.get("time_embedding_act_fn")
  skip = config.get("resnet_skip_time_act", False)
  if (outside, skip) not in ((None, False), (name, True)):
    raise _refused("time_embedding_act_fn", outside, f"{name} once")
  return ACTIVATIONS[name]


def _residual_scale(config: Mapping[str, Any]) -> float:
  factor = config.get("resnet_out_scale_factor", 1.0)
  if config.get("mid_block_scale_factor", 1.0) != factor:
    raise _refused(
      "mid_block_scale_factor",
      config.get("mid_block_scale_factor"),
      f"resnet_out_scale_factor {factor}",
    )
  return 1.0 / factor
