"""The base U-Net: ADM's layout with text (Sec. 2.5, App. F.1).

Fields are named as in App. F.1. Its `res_block_type: biggan`,
`use_scale_shift_norm: True` and `dropout: 0` are what this file is.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.nets.conditioning import CombineEmbs, ProjectText, with_lowres
from imagen_jax.nets.layers import (
  Attention,
  adaptive_norm,
  downsample,
  group_norm,
  upsample,
  zeros,
)
from imagen_jax.types import Conditioning


def same(x: jax.Array) -> jax.Array:
  """No resampling."""
  return x


class ResBlock(nn.Module):
  """BigGAN residual block with adaptive GroupNorm; resamples h and x alike."""

  channels: int
  groups: int
  resample: Any = same
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
    """x [B, H, W, C], emb [B, E] -> [B, H', W', channels]."""
    conv = {"kernel_size": (3, 3), "dtype": self.dtype}
    h = nn.swish(group_norm(self.groups, "norm_0")(x))
    h, x = self.resample(h), self.resample(x)
    h = nn.Conv(self.channels, **conv, name="conv_0")(h)
    h = nn.swish(adaptive_norm(h, emb, self.groups, self.dtype))
    h = nn.Conv(self.channels, **conv, kernel_init=zeros, name="conv_1")(h)
    if x.shape[-1] != self.channels:
      x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(x)
    return x + h


class UNet(nn.Module):
  """ADM U-Net that attends to pixels and text (App. F.1).

  image_size is the size at which `attn_resolutions` are counted; the net
  itself takes any size divisible by 2^(levels - 1). text_width is the width
  the text is projected to before the attention layers; that there is a
  projection is ours. As a super-resolution net it takes cond.lowres and
  cond.aug_level.
  """

  image_size: int = 64
  embed_dim: int = 512
  channel_mult: tuple[int, ...] = (1, 2, 3, 4)
  num_res_blocks: int = 3
  attn_resolutions: tuple[int, ...] = (32, 16, 8)
  text_cross_attn_res: tuple[int, ...] = (32, 16, 8)
  per_head_channels: int = 64
  feature_pooling_type: str = "attention"
  text_width: int = 2048
  norm_groups: int = 32
  out_channels: int = 3
  dtype: Any = jnp.float32

  @property
  def stride(self) -> int:
    """What a picture's side must be divisible by."""
    return 2 ** (len(self.channel_mult) - 1)

  def check_resolutions(self) -> None:
    """ValueError if attention is wanted at what is no level's resolution."""
    levels = [self.image_size // 2**i for i in range(len(self.channel_mult))]
    for name in ("attn_resolutions", "text_cross_attn_res"):
      for resolution in getattr(self, name):
        if resolution not in levels:
          raise ValueError(
            f"{name} has {resolution}, expected resolutions of the levels of "
            f"image_size {self.image_size}: {', '.join(map(str, levels))}"
          )

  def res(self, channels: int, name: str, resample=same) -> ResBlock:
    return ResBlock(
      channels, self.norm_groups, resample, dtype=self.dtype, name=name
    )

  def attend(self, x, text, level: int, name: str) -> jax.Array:
    """Attention to what this level attends to: pixels, text, both, nothing."""
    resolution = self.image_size // 2**level
    text = text if resolution in self.text_cross_attn_res else None
    self_attention = resolution in self.attn_resolutions
    if text is None and not self_attention:
      return x
    width = x.shape[-1]
    if width % self.per_head_channels:
      raise ValueError(
        f"per_head_channels is {self.per_head_channels}, expected a divisor "
        f"of {width}, the channels at resolution {resolution}"
      )
    return Attention(
      num_heads=width // self.per_head_channels,
      head_dim=self.per_head_channels,
      groups=self.norm_groups,
      self_attention=self_attention,
      dtype=self.dtype,
      name=name,
    )(x, text)

  @nn.compact
  def __call__(
    self, z: jax.Array, time: jax.Array, cond: Conditioning
  ) -> jax.Array:
    """z [B, H, W, C], time [B] in [0, 1000] -> [B, H, W, out] float32."""
    self.check_resolutions()
    emb = CombineEmbs(
      self.embed_dim,
      4 * self.embed_dim,
      self.feature_pooling_type,
      dtype=self.dtype,
      name="combine_embs",
    )(time, cond)
    text = ProjectText(self.text_width, self.dtype, name="text")(cond.text)
    widths = [self.embed_dim * m for m in self.channel_mult]
    last = len(widths) - 1

    h = with_lowres(z, cond.lowres)
    h = nn.Conv(widths[0], (3, 3), dtype=self.dtype, name="conv_in")(h)
    skips = [h]
    for level, width in enumerate(widths):
      for i in range(self.num_res_blocks):
        h = self.res(width, f"down_{level}_res_{i}")(h, emb)
        h = self.attend(h, text, level, f"down_{level}_attn_{i}")
        skips.append(h)
      if level < last:
        h = self.res(width, f"down_{level}_sample", downsample)(h, emb)
        skips.append(h)

    h = self.res(widths[-1], "mid_res_0")(h, emb)
    h = self.attend(h, text, last, "mid_attn")
    h = self.res(widths[-1], "mid_res_1")(h, emb)

    for level, width in reversed(list(enumerate(widths))):
      for i in range(self.num_res_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self.res(width, f"up_{level}_res_{i}")(h, emb)
        h = self.attend(h, text, level, f"up_{level}_attn_{i}")
      if level > 0:
        h = self.res(width, f"up_{level}_sample", upsample)(h, emb)

    h = nn.swish(group_norm(self.norm_groups, "norm_out")(h))
    head = nn.Conv(
      self.out_channels, (3, 3), kernel_init=zeros, name="conv_out"
    )
    return head(h.astype(jnp.float32))
