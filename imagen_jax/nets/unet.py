"""The base U-Net: ADM's layout with text (Sec. 2.5, App. F.1).

Fields are named as in App. F.1. Its `res_block_type: biggan`,
`use_scale_shift_norm: True` and `dropout: 0` are built in. With other settings
the U-Net is DeepFloyd IF's first or second net (interop/diffusers.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.nets.blocks import Unit, run_blocks
from imagen_jax.nets.conditioning import CombineEmbs, ProjectText, with_lowres
from imagen_jax.nets.layers import (
  Attention,
  adaptive_norm,
  at_own_precision,
  downsample,
  group_norm,
  layer_norm,
  pin_batch,
  upsample,
  zeros,
)
from imagen_jax.types import Conditioning, TextEmbedding


def same(x: jax.Array) -> jax.Array:
  """Returns x: no resampling."""
  return x


class ResBlock(nn.Module):
  """BigGAN residual block with adaptive GroupNorm.

  It resamples both the residual h and the input x.
  """

  channels: int  # of the output
  groups: int  # of GroupNorm
  resample: Any = same  # or downsample, or upsample
  activation: Callable[[jax.Array], jax.Array] = nn.swish
  residual_scale: float = 1.0  # multiplies the sum of x and h
  dtype: Any = jnp.float32  # of products and convolutions

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
    """Maps x [B, H, W, C] and emb [B, E] to [B, H', W', channels]."""
    conv = {"kernel_size": (3, 3), "dtype": self.dtype}
    h = self.activation(group_norm(self.groups, "norm_0")(x))
    h, x = self.resample(h), self.resample(x)
    h = pin_batch(nn.Conv(self.channels, **conv, name="conv_0")(h))
    h = self.activation(adaptive_norm(h, emb, self.groups, self.dtype))
    h = nn.Conv(self.channels, **conv, kernel_init=zeros, name="conv_1")(h)
    if x.shape[-1] != self.channels:
      x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(x)
    return pin_batch((x + h) * self.residual_scale)


class UNet(nn.Module):
  """ADM U-Net that attends to pixels and text (App. F.1).

  It takes images whose height and width are divisible by 2^(levels - 1). As a
  super-resolution net it takes cond.lowres and cond.aug_level. Not in the
  paper: the settings from norm_groups to text_norm, for which DeepFloyd IF has
  other values.
  """

  image_size: int = 64  # pixels; the size at which resolutions are counted
  embed_dim: int = 512  # the width of level 0, in channels
  channel_mult: tuple[int, ...] = (1, 2, 3, 4)  # each level's width / embed_dim
  num_res_blocks: int | tuple[int, ...] = 3  # of each level, or one for all
  attn_resolutions: tuple[int, ...] = (32, 16, 8)  # of self-attention, pixels
  text_cross_attn_res: tuple[int, ...] = (32, 16, 8)  # of text, in pixels
  per_head_channels: int = 64  # channels of a head of attention
  feature_pooling_type: str = "attention"  # or "mean"
  # Not in the paper, which states no width: that of the projected text.
  text_width: int = 2048
  norm_groups: int = 32  # of GroupNorm
  out_channels: int = 3  # 6 with a learned variance
  emb_width: int | None = None  # of the timestep embedding; None is 4 embed_dim
  pool_head_channels: int = 64  # channels of a head of attention pooling
  residual_scale: float = 1.0  # multiplies a residual block's sum
  activation: Callable[[jax.Array], jax.Array] = nn.swish
  text_norm: Callable[[str], nn.Module] = layer_norm  # called with its name
  # A key of REMAT for each level, which selects the results that its blocks
  # keep for the backward pass (nets/blocks.py). () is "none" for all levels.
  remat: tuple[str, ...] = ()
  scan: bool = False  # whether equal blocks are compiled as one loop
  dtype: Any = jnp.float32  # of products and convolutions
  precision: str = "highest"  # of products of float32, one of PRECISIONS
  # Not in the paper: whether pooling reads the projected text in place of text
  # of the encoder's full width.
  pool_projected: bool = False

  @property
  def stride(self) -> int:
    """The divisor of an image's height and width, in pixels."""
    return 2 ** (len(self.channel_mult) - 1)

  def resolution(self, level: int) -> int:
    """Returns a level's resolution for images of image_size, in pixels."""
    return self.image_size // 2**level

  @property
  def blocks(self) -> tuple[int, ...]:
    """The number of residual blocks of each level."""
    given = self.num_res_blocks
    return (
      given if isinstance(given, tuple) else (given,) * len(self.channel_mult)
    )

  def check_levels(self) -> None:
    """Checks the fields that refer to levels.

    Raises:
      ValueError: if a resolution of attention is no level's, or if a tuple's
        length is not the number of levels.
    """
    levels = [self.resolution(i) for i in range(len(self.channel_mult))]
    if self.remat and len(self.remat) != len(levels):
      raise ValueError(
        f"remat has {len(self.remat)} policies, expected one for each of the "
        f"{len(levels)} levels"
      )
    if len(self.blocks) != len(levels):
      raise ValueError(
        f"num_res_blocks has {len(self.blocks)} numbers, expected one for each "
        f"of the {len(levels)} levels"
      )
    for name in ("attn_resolutions", "text_cross_attn_res"):
      for resolution in getattr(self, name):
        if resolution not in levels:
          raise ValueError(
            f"{name} has {resolution}, expected resolutions of the levels of "
            f"image_size {self.image_size}: {', '.join(map(str, levels))}"
          )

  def text_at(
    self, level: int, text: TextEmbedding | None
  ) -> TextEmbedding | None:
    """Returns the text where a level attends to it, else None."""
    return text if self.resolution(level) in self.text_cross_attn_res else None

  def unit(
    self, level: int, names: tuple[str, str], text: TextEmbedding | None
  ) -> Unit:
    """Returns a residual block and the attention after it, or None.

    Attention is to the level's pixels, to the text, or to both at once.

    Raises:
      ValueError: if per_head_channels does not divide the level's width.
    """
    width = self.embed_dim * self.channel_mult[level]
    res = self.res(width, names[0])
    self_attention = self.resolution(level) in self.attn_resolutions
    if not self_attention and self.text_at(level, text) is None:
      return res, None
    if width % self.per_head_channels:
      raise ValueError(
        f"per_head_channels is {self.per_head_channels}, expected a divisor "
        f"of {width}, the channels at resolution {self.resolution(level)}"
      )
    return res, Attention(
      num_heads=width // self.per_head_channels,
      head_dim=self.per_head_channels,
      groups=self.norm_groups,
      self_attention=self_attention,
      text_norm=self.text_norm,
      dtype=self.dtype,
      name=names[1],
    )

  def res(self, channels: int, name: str, resample=same) -> ResBlock:
    """Returns a residual block with the net's settings."""
    return ResBlock(
      channels,
      self.norm_groups,
      resample,
      self.activation,
      self.residual_scale,
      dtype=self.dtype,
      name=name,
    )

  def level(
    self,
    level: int,
    units: Sequence[Unit],
    h: jax.Array,
    skips: Sequence[jax.Array] | None,
    emb: jax.Array,
    text: TextEmbedding | None,
  ) -> tuple[jax.Array, list[jax.Array]]:
    """Runs a level's blocks, each with its skip; returns h and all outputs."""

    def block(unit, h, skip):
      res, attention = unit
      h = h if skip is None else jnp.concatenate([h, skip], axis=-1)
      h = res(pin_batch(h), emb)
      if attention is not None:
        h = attention(h, self.text_at(level, text))
      return h, h

    remat = self.remat[level] if self.remat else "none"
    return run_blocks(block, units, h, skips, remat=remat, scan=self.scan)

  @nn.compact
  @at_own_precision
  def __call__(
    self, z: jax.Array, time: jax.Array, cond: Conditioning
  ) -> jax.Array:
    """Maps z [B, H, W, C], time [B] in [0, 1000] to float32 [B, H, W, out]."""
    self.check_levels()
    text = ProjectText(self.text_width, self.dtype, name="text")(cond.text)
    pooled = cond.replace(text=text) if self.pool_projected else cond
    emb = CombineEmbs(
      self.embed_dim,
      self.emb_width or 4 * self.embed_dim,
      self.feature_pooling_type,
      self.pool_head_channels,
      self.activation,
      dtype=self.dtype,
      name="combine_embs",
    )(time, pooled)
    widths = [self.embed_dim * m for m in self.channel_mult]
    last = len(widths) - 1

    h = with_lowres(z, cond.lowres)
    h = nn.Conv(widths[0], (3, 3), dtype=self.dtype, name="conv_in")(h)
    h = pin_batch(h)
    # Down.
    skips = [h]
    for i, width in enumerate(widths):
      units = [
        self.unit(i, (f"down_{i}_res_{j}", f"down_{i}_attn_{j}"), text)
        for j in range(self.blocks[i])
      ]
      if i < last:
        units += [(self.res(width, f"down_{i}_sample", downsample), None)]
      h, outs = self.level(i, units, h, None, emb, text)
      skips += outs
    # Middle.
    units = [self.unit(last, ("mid_res_0", "mid_attn"), text)]
    units += [(self.res(widths[-1], "mid_res_1"), None)]
    h, _ = self.level(last, units, h, None, emb, text)
    # Up.
    for i, width in reversed(list(enumerate(widths))):
      units = [
        self.unit(i, (f"up_{i}_res_{j}", f"up_{i}_attn_{j}"), text)
        for j in range(self.blocks[i] + 1)
      ]
      h, _ = self.level(i, units, h, [skips.pop() for _ in units], emb, text)
      if i > 0:
        units = [(self.res(width, f"up_{i}_sample", upsample), None)]
        h, _ = self.level(i, units, h, None, emb, text)

    h = self.activation(group_norm(self.norm_groups, "norm_out")(h))
    head = nn.Conv(
      self.out_channels,
      (3, 3),
      precision=jax.lax.Precision.HIGHEST,
      kernel_init=zeros,
      name="conv_out",
    )
    return head(h.astype(jnp.float32))
