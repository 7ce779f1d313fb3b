"""The Efficient U-Net of the super-resolution stages (App. B.1, F.2, F.3).

Boxes and names follow Figs. A.27-A.30. Where the figures are silent: the
embedding scales and shifts in every ResNetBlock (`use_scale_shift_norm`),
"hidden_size = 2 x channels" is the total width of queries, keys and values,
skips are concatenated, one CombineEmbs serves all blocks, the 1/sqrt(2) is on
the residual sum as in the works App. B.1 cites, attention's sum with its input
is not scaled, GroupNorm and swish precede A.30's dense layer as they precede
every other layer that ends a U-Net, and a UBlock's strided convolution is a
sub-pixel one. (A convolution of nearest-neighbour copies
makes the four pixels from nine shared weights, too few for the independent
noise of single pixels, which the net is to predict.)
"""

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.nets.blocks import in_turn
from imagen_jax.nets.conditioning import CombineEmbs, ProjectText, with_lowres
from imagen_jax.nets.layers import (
  Attention,
  adaptive_norm,
  at_own_precision,
  depth_to_space,
  group_norm,
  pin_batch,
  zeros,
)
from imagen_jax.types import Conditioning, TextEmbedding


@dataclasses.dataclass(frozen=True)
class BlockSpec:
  """One row of App. F.2's `blocks`: a DBlock and the UBlock mirroring it.

  strides None is a pair that keeps the resolution: the strided convolutions
  are the optional, dashed boxes of Figs. A.28 and A.29. remat, which is ours,
  says what its blocks keep for the backward pass (nets/blocks.py).
  """

  channels: int
  strides: tuple[int, int] | None = (2, 2)
  kernel_size: tuple[int, int] = (3, 3)
  num_res_blocks: int = 2
  self_attention: bool = False
  text_cross_attention: bool = False
  num_attention_heads: int = 8
  remat: str = "none"


SR256_BLOCKS = (
  BlockSpec(channels=128, num_res_blocks=2),
  BlockSpec(channels=256, num_res_blocks=4),
  BlockSpec(channels=512, num_res_blocks=8),
  BlockSpec(
    channels=1024,
    num_res_blocks=8,
    self_attention=True,
    text_cross_attention=True,
  ),
)


class ResNetBlock(nn.Module):
  """Fig. A.27: two convolutions beside a 1x1 one, and their scaled sum."""

  channels: int
  kernel_size: tuple[int, int]
  groups: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
    """x [B, H, W, C], emb [B, E] -> [B, H, W, channels]."""
    conv = {"kernel_size": self.kernel_size, "dtype": self.dtype}
    h = nn.swish(group_norm(self.groups, "norm_0")(x))
    h = pin_batch(nn.Conv(self.channels, **conv, name="conv_0")(h))
    h = nn.swish(adaptive_norm(h, emb, self.groups, self.dtype))
    h = nn.Conv(self.channels, **conv, name="conv_1")(h)
    skip = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(x)
    return pin_batch((skip + h) * 2**-0.5)


class Body(nn.Module):
  """What a DBlock and a UBlock share: ResNetBlocks, then attention."""

  spec: BlockSpec
  groups: int
  scan: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, emb: jax.Array, text: TextEmbedding | None
  ) -> jax.Array:
    """x [B, H, W, C] -> [B, H, W, spec.channels]."""
    spec = self.spec
    in_turn_as = partial(in_turn, remat=spec.remat, scan=self.scan)
    blocks = [
      ResNetBlock(
        spec.channels,
        spec.kernel_size,
        self.groups,
        self.dtype,
        name=f"res_{i}",
      )
      for i in range(spec.num_res_blocks)
    ]
    res = lambda unit, x, _: (unit[0](pin_batch(x), emb), None)
    x, _ = in_turn_as(res, [(block,) for block in blocks], x)
    text = text if spec.text_cross_attention else None
    if text is None and not spec.self_attention:
      return x
    if 2 * spec.channels % spec.num_attention_heads:
      raise ValueError(
        f"num_attention_heads is {spec.num_attention_heads}, expected a "
        f"divisor of {2 * spec.channels}, twice the channels of its block"
      )
    attention = Attention(
      num_heads=spec.num_attention_heads,
      head_dim=2 * spec.channels // spec.num_attention_heads,
      groups=self.groups,
      self_attention=spec.self_attention,
      dtype=self.dtype,
      name="attention",
    )
    attend = lambda unit, x, _: (unit[0](x, text), None)
    return in_turn_as(attend, [(attention,)], x)[0]


class DBlock(nn.Module):
  """Fig. A.28: downsample first, then compute."""

  spec: BlockSpec
  groups: int
  scan: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, emb, text) -> jax.Array:
    """x [B, H, W, C] -> [B, H / stride, W / stride, spec.channels]."""
    spec = self.spec
    if spec.strides is not None:
      x = nn.Conv(
        spec.channels,
        spec.kernel_size,
        strides=spec.strides,
        dtype=self.dtype,
        name="conv",
      )(x)
    return Body(spec, self.groups, self.scan, self.dtype, name="body")(
      pin_batch(x), emb, text
    )


class UBlock(nn.Module):
  """Fig. A.29: compute first, then upsample."""

  spec: BlockSpec
  groups: int
  scan: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, emb, text) -> jax.Array:
    """x [B, H, W, C] -> [B, H * stride, W * stride, spec.channels]."""
    spec = self.spec
    x = Body(spec, self.groups, self.scan, self.dtype, name="body")(
      x, emb, text
    )
    if spec.strides is None:
      return x
    channels = spec.channels * math.prod(spec.strides)
    x = nn.Conv(channels, spec.kernel_size, dtype=self.dtype, name="conv")(x)
    return pin_batch(depth_to_space(x, spec.strides))


class EfficientUNet(nn.Module):
  """Fig. A.30: convolution, DBlocks down, UBlocks up, dense to pixels.

  One `blocks` tuple, from high resolution to low, drives both halves. That
  the innermost link is not a skip is our reading. Takes any picture whose side
  is divisible by the product of the strides. With scan, equal blocks are
  compiled as one loop.
  """

  blocks: tuple[BlockSpec, ...] = SR256_BLOCKS
  embed_dim: int = 128
  feature_pooling_type: str = "attention"
  text_width: int = 1024
  norm_groups: int = 32
  out_channels: int = 3
  scan: bool = False
  dtype: Any = jnp.float32
  precision: str = "highest"

  @property
  def stride(self) -> int:
    """What a picture's side must be divisible by."""
    stride = 1
    for spec in self.blocks:
      stride *= max(spec.strides or (1,))
    return stride

  @nn.compact
  @at_own_precision
  def __call__(
    self, z: jax.Array, time: jax.Array, cond: Conditioning
  ) -> jax.Array:
    """z [B, H, W, C], time [B] in [0, 1000] -> [B, H, W, out] float32."""
    emb = CombineEmbs(
      self.embed_dim,
      4 * self.embed_dim,
      self.feature_pooling_type,
      dtype=self.dtype,
      name="combine_embs",
    )(time, cond)
    text = ProjectText(self.text_width, self.dtype, name="text")(cond.text)

    x = with_lowres(z, cond.lowres)
    x = nn.Conv(
      self.blocks[0].channels, (3, 3), dtype=self.dtype, name="conv_in"
    )(x)
    shared = (self.norm_groups, self.scan, self.dtype)
    skips = []
    for i, spec in enumerate(self.blocks):
      x = DBlock(spec, *shared, name=f"dblock_{i}")(x, emb, text)
      skips.append(x)
    skips.pop()
    for i, spec in reversed(list(enumerate(self.blocks))):
      x = UBlock(spec, *shared, name=f"ublock_{i}")(x, emb, text)
      if skips:
        x = jnp.concatenate([x, skips.pop()], axis=-1)

    x = nn.swish(group_norm(self.norm_groups, "norm_out")(x))
    head = nn.Dense(
      self.out_channels,
      precision=jax.lax.Precision.HIGHEST,
      kernel_init=zeros,
      name="dense_out",
    )
    return head(x.astype(jnp.float32))
