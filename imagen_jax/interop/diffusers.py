"""Conversion of DeepFloyd IF's first two nets from and to diffusers' layout.

A `unet` folder of diffusers holds config.json, which describes the net, and
its tensors as safetensors. Every net of IF is a UNet whose settings differ from
the paper's: shared blocks, exact GELU, GroupNorm on text, learned variance. A
config.json that asks for features that these nets lack is refused.
"""

import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_jax import files
from imagen_jax.interop import hub
from imagen_jax.interop.tensors import Tensor, check, place
from imagen_jax.interop.unet_names import diffusers_names, layout_of
from imagen_jax.nets.layers import gelu, text_group_norm
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.sharding import Placement

CONFIG, STEM = hub.CONFIG, "diffusion_pytorch_model"
ACTIVATIONS = {"gelu": gelu, "silu": nn.swish, "swish": nn.swish}
# The block types of a level with attention and without: down, then up.
_DOWN = ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D")
_UP = ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D")
# A file may come from anyone, and tracing 10^7 blocks would take days. The
# published nets stay far below these limits.
_MOST_LEVELS, _MOST_BLOCKS, _MOST_WIDTH = 8, 16, 2**16
# The keys with one supported value: diffusers' key, the value, its default.
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
  """Reads config.json of a folder.

  Raises:
    ValueError: the file cannot be read, or holds no JSON object.
  """
  path = epath.Path(folder) / CONFIG
  config = files.read_json(path, "config")
  if not isinstance(config, dict):
    raise ValueError(f"{path} has no settings, expected those of a UNet")
  return config


def unet(config: Mapping[str, Any], *, dtype: Any = jnp.float32) -> UNet:
  """Builds the net that a config.json describes.

  Args:
    config: the file's content, which may come from anyone.
    dtype: of matrix products and convolutions.

  Raises:
    ValueError: the file asks for a feature that no net of DeepFloyd IF has, or
      its numbers describe no net. The sentence names the key.
  """
  for key, (value, default) in _FIXED.items():
    found = config.get(key, default)
    if found != value and not (key == "encoder_hid_dim_type" and not found):
      raise _refused(key, found, repr(value))
  text_only = config.get("only_cross_attention", False)
  if not isinstance(text_only, bool):
    raise _refused("only_cross_attention", text_only, "true or false")
  channels = _widths(config)
  levels, width = len(channels), channels[0]
  size = _integer(config, "sample_size")
  if size % 2 ** (levels - 1):
    expected = f"the side of the images, divisible by {2 ** (levels - 1)}"
    raise _refused("sample_size", size, expected)
  attended = _attended_levels(config, levels)
  text_dim = _integer(config, "encoder_hid_dim")
  heads = _divisor(config, "addition_embed_type_num_heads", [text_dim], 64)
  return UNet(
    image_size=size,
    embed_dim=width,
    channel_mult=tuple(n // width for n in channels),
    num_res_blocks=_blocks(config, levels),
    attn_resolutions=() if text_only else tuple(size // 2**i for i in attended),
    text_cross_attn_res=tuple(size // 2**i for i in attended),
    per_head_channels=_divisor(
      config, "attention_head_dim", [channels[i] for i in attended]
    ),
    text_width=_integer(config, "cross_attention_dim"),
    norm_groups=_divisor(config, "norm_num_groups", channels, 32),
    out_channels=_integer(config, "out_channels"),
    emb_width=_integer(config, "time_embedding_dim", 4 * width),
    pool_head_channels=text_dim // heads,
    residual_scale=_residual_scale(config),
    activation=_activation(config),
    text_norm=text_group_norm,
    dtype=dtype,
  )


def config_of(net: UNet, params: Any) -> dict[str, Any]:
  """Returns the config.json of a net and its parameters (arrays or shapes)."""
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
  """Loads a net's parameters in the tree and dtypes of `like`.

  Args:
    folder: a `unet` folder of diffusers.
    like: the shapes and dtypes of the parameters.
    placement: how to shard them; None puts them on the first device.

  Raises:
    ValueError: tensors are missing, unknown or misshapen, and the sentence
      names them all; or a file is missing, damaged or a pickle.
  """
  return place(tensors(folder, like), like, placement)


def tensors(folder: str | os.PathLike, like: Any) -> dict[str, Tensor]:
  """Opens a net's tensors by our paths, in the shapes of `like`, unread.

  If the file has twice the outputs of `like`, which adds the learned variance,
  the first half is taken: eps.

  Raises:
    ValueError: as load.
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
  """Writes config.json and the tensors for diffusers' loader, without rounding.

  Raises:
    ValueError: the files cannot be written, or DeepFloyd IF has no such net.
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
  """Returns the shapes of a net's tensors in diffusers, by diffusers' names."""
  flat = flax.traverse_util.flatten_dict(like, sep="/")
  return {
    name: layout_of(ours, flat[ours].shape).shape(flat[ours].shape)
    for ours, name in diffusers_names(flat).items()
  }


def _refused(key: str, found: Any, expected: str) -> ValueError:
  """Returns the error for a key's value that is not supported."""
  # A value may have megabytes.
  return ValueError(
    f"{CONFIG} has {key} {reprlib.repr(found)}, expected {expected}, as "
    "DeepFloyd IF's first and second nets have it"
  )


def _is_count(value: Any, most: int) -> bool:
  return type(value) is int and 1 <= value <= most  # excludes bool


def _integer(
  config: Mapping[str, Any], key: str, default: int | None = None
) -> int:
  """Returns a key's integer, such as a width; null stands for the default."""
  value = config.get(key)
  if value is None and default is not None:
    return default
  if not _is_count(value, _MOST_WIDTH):
    raise _refused(key, value, f"a whole number of 1 to {_MOST_WIDTH}")
  return value


def _divisor(
  config: Mapping[str, Any],
  key: str,
  widths: Sequence[int],
  default: int | None = None,
) -> int:
  """Returns a key's integer, which must divide all `widths`."""
  value = _integer(config, key, default)
  if any(width % value for width in widths):
    raise _refused(key, value, f"a divisor of {', '.join(map(str, widths))}")
  return value


def _widths(config: Mapping[str, Any]) -> list[int]:
  """Returns the channels of each level, all multiples of the first."""
  key = "block_out_channels"
  value = config.get(key)
  if not isinstance(value, list | tuple) or not (
    1 <= len(value) <= _MOST_LEVELS
    and all(_is_count(width, _MOST_WIDTH) for width in value)
  ):
    raise _refused(
      key, value, f"1 to {_MOST_LEVELS} numbers of 1 to {_MOST_WIDTH}"
    )
  if any(width % value[0] for width in value):
    raise _refused(key, value, "multiples of the first of them")
  return list(value)


def _blocks(config: Mapping[str, Any], levels: int) -> tuple[int, ...]:
  """Returns the blocks of each level; a single number holds for all levels."""
  key = "layers_per_block"
  value = given = config.get(key)
  if not isinstance(value, list | tuple):
    value = [value] * levels
  if len(value) != levels or not all(_is_count(n, _MOST_BLOCKS) for n in value):
    expected = f"a number of 1 to {_MOST_BLOCKS}, or {levels} numbers"
    raise _refused(key, given, expected)
  return tuple(value)


def _attended_levels(config: Mapping[str, Any], levels: int) -> list[int]:
  """Returns the levels with attention; the last level must be among them."""
  down, up = (config.get(f"{side}_block_types") for side in ("down", "up"))
  known = isinstance(down, list | tuple) and all(kind in _DOWN for kind in down)
  kinds = [_DOWN.index(kind) for kind in down] if known else []
  if len(kinds) != levels or kinds[-1]:
    raise _refused(
      "down_block_types", down, f"{levels} of {_DOWN}, the last the first one"
    )
  reversed_up = list(up) if isinstance(up, list | tuple) else None
  if reversed_up != [_UP[kind] for kind in reversed(kinds)]:
    raise _refused("up_block_types", up, "those of down_block_types, reversed")
  return [i for i, kind in enumerate(kinds) if not kind]


def _activation(config: Mapping[str, Any]) -> Any:
  """Returns the net's activation, once applied to the sum of embeddings too."""
  name = config.get("act_fn", "silu")
  if not isinstance(name, str) or name not in ACTIVATIONS:
    raise _refused("act_fn", name, f"one of {', '.join(ACTIVATIONS)}")
  outside = config.get("time_embedding_act_fn")
  skip = config.get("resnet_skip_time_act", False)
  if (outside, skip) not in ((None, False), (name, True)):
    raise _refused("time_embedding_act_fn", outside, f"{name} once")
  return ACTIVATIONS[name]


def _residual_scale(config: Mapping[str, Any]) -> float:
  """Returns the factor that multiplies a residual block's sum."""
  key = "resnet_out_scale_factor"
  factor, middle = config.get(key, 1.0), config.get("mid_block_scale_factor", 1)
  number = isinstance(factor, int | float) and not isinstance(factor, bool)
  if not (number and 1e-3 <= factor <= 1e3):  # refuses NaN too
    raise _refused(key, factor, "a number of 0.001 to 1000")
  if middle != factor:
    raise _refused("mid_block_scale_factor", middle, f"{key} {factor}")
  return 1.0 / factor
