"""The Efficient U-Net of the super-resolution stages (Apps. B.1, F.2, F.3).

Boxes and names follow Figs. A.27-A.30. Not in the paper, whose figures leave
these choices open:

* The embedding scales and shifts in every ResNetBlock
  (`use_scale_shift_norm`).
* "hidden_size = 2 x channels" is the total width of queries, keys and values.
* Skips are concatenated.
* One CombineEmbs serves all blocks.
* 1/sqrt(2) multiplies the residual sum, as in the works that App. B.1 cites.
  The sum of attention and its input is not scaled.
* GroupNorm and swish precede the dense layer of Fig. A.30, as they precede
  every other layer that ends a U-Net.
* The strided convolution of a UBlock is a sub-pixel convolution. A convolution
  of nearest-neighbour copies makes the four pixels from nine shared weights.
  These are too few for the independent noise of single pixels, which the net
  predicts.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.nets.blocks import run_blocks
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
  """Describes a row of App. F.2's `blocks`: a DBlock and its mirroring UBlock.

  Attributes:
    channels: the width of both blocks.
    strides: the factors of down- and upsampling; None keeps the resolution. The
      strided convolutions are optional, dashed boxes in Figs. A.28 and A.29.
    kernel_size: of the convolutions, in pixels.
    num_res_blocks: the number of ResNetBlocks of each block.
    self_attention: whether pixels attend to pixels.
    text_cross_attention: whether pixels attend to the text.
    num_attention_heads: the number of heads, a divisor of 2 channels.
    remat: a key of REMAT in nets/blocks.py, which selects the results that the
      blocks keep for the backward pass. Not in the paper: it saves memory.
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
  """Adds two convolutions and a 1x1 convolution beside them (Fig. A.27).

  The sum is scaled by 1/sqrt(2).
  """

  channels: int  # of the output
  kernel_size: tuple[int, int]  # in pixels
  groups: int  # of GroupNorm
  dtype: Any = jnp.float32  # of products and convolutions

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
    """Maps x [B, H, W, C] and emb [B, E] to [B, H, W, channels]."""
    conv = {"kernel_size": self.kernel_size, "dtype": self.dtype}
    h = nn.swish(group_norm(self.groups, "norm_0")(x))
    h = pin_batch(nn.Conv(self.channels, **conv, name="conv_0")(h))
    h = nn.swish(adaptive_norm(h, emb, self.groups, self.dtype))
    h = nn.Conv(self.channels, **conv, name="conv_1")(h)
    skip = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="skip")(x)
    return pin_batch((skip + h) * 2**-0.5)


class Body(nn.Module):
  """The common part of DBlock and UBlock: ResNetBlocks, then attention."""

  spec: BlockSpec
  groups: int  # of GroupNorm
  scan: bool = False  # whether equal blocks are compiled as one loop
  dtype: Any = jnp.float32  # of products and convolutions

  @nn.compact
  def __call__(
    self, x: jax.Array, emb: jax.Array, text: TextEmbedding | None
  ) -> jax.Array:
    """Maps x [B, H, W, C] to [B, H, W, spec.channels].

    Raises:
      ValueError: if the number of heads does not divide 2 channels.
    """
    spec = self.spec
    in_turn_as = partial(run_blocks, remat=spec.remat, scan=self.scan)
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
  """Downsamples first, then computes (Fig. A.28). Fields are as in Body."""

  spec: BlockSpec
  groups: int
  scan: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, emb, text) -> jax.Array:
    """Maps x [B, H, W, C] to [B, H / stride, W / stride, spec.channels]."""
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
  """Computes first, then upsamples (Fig. A.29). Fields are as in Body."""

  spec: BlockSpec
  groups: int
  scan: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, emb, text) -> jax.Array:
    """Maps x [B, H, W, C] to [B, H * stride, W * stride, spec.channels]."""
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
  """Efficient U-Net: convolution, DBlocks, UBlocks, dense layer (Fig. A.30).

  One `blocks` tuple, from high resolution to low, describes both halves. Height
  and width of an image must be divisible by `stride`. Not in the paper, which
  does not state it: the innermost link is not a skip.
  """

  blocks: tuple[BlockSpec, ...] = SR256_BLOCKS  # rows of App. F.2
  embed_dim: int = 128  # features of the sinusoids; embeddings have 4 times it
  feature_pooling_type: str = "attention"  # or "mean"
  text_width: int = 1024  # of the projected text
  norm_groups: int = 32  # of GroupNorm
  out_channels: int = 3  # 6 with a learned variance
  scan: bool = False  # whether equal blocks are compiled as one loop
  dtype: Any = jnp.float32  # of products and convolutions
  precision: str = "highest"  # of products of float32, one of PRECISIONS

  @property
  def stride(self) -> int:
    """The divisor of an image's height and width, in pixels."""
    stride = 1
    for spec in self.blocks:
      stride *= max(spec.strides or (1,))
    return stride

  @nn.compact
  @at_own_precision
  def __call__(
    self, z: jax.Array, time: jax.Array, cond: Conditioning
  ) -> jax.Array:
    """Maps z [B, H, W, C], time [B] in [0, 1000] to float32 [B, H, W, out]."""
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
    # Down.
    skips = []
    for i, spec in enumerate(self.blocks):
      x = DBlock(spec, *shared, name=f"dblock_{i}")(x, emb, text)
      skips.append(x)
    skips.pop()  # the innermost link is not a skip
    # Up.
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
