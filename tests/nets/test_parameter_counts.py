"""Sizes of the paper's nets, counted apart from the code, by its figures."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.nets.efficient_unet import SR256_BLOCKS, EfficientUNet
from imagen_jax.nets.unet import UNet
from imagen_jax.types import Conditioning, TextEmbedding

T5_XXL = 4096
CROSS = dataclasses.replace(SR256_BLOCKS[-1], self_attention=False)


def count(net, *, text=True, factor=None):
  """Parameters of a net, of which none is made."""
  tokens, mask = jnp.zeros((1, 128, T5_XXL)), jnp.ones((1, 128), bool)
  cond = Conditioning(TextEmbedding(tokens, mask) if text else None)
  z = jnp.zeros((1, 16, 16, 3))
  if factor:
    lowres = jnp.zeros((1, 16 // factor, 16 // factor, 3))
    cond = cond.replace(lowres=lowres, aug_level=jnp.zeros(1))
  init = jax.eval_shape(net.init, jax.random.key(0), z, jnp.zeros(1), cond)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(init["params"]))


def conv(i, o, kernel=1):
  return kernel**2 * i * o + o


def attention(c, hidden, self_attention, text_width):
  """Norm, queries, keys and values of pixels and of normed text, output."""
  sources = self_attention * 2 * conv(c, hidden)
  if text_width:
    sources += 2 * text_width + 2 * conv(text_width, hidden)
  return 2 * c + conv(c, hidden) + sources + conv(hidden, c)


def embedding(features, sinusoids, text_width, pool_width=T5_XXL):
  """An MLP per sinusoid; pooling of text of a width; its one projection."""
  width = 4 * features
  total = sinusoids * (conv(features, width) + conv(width, width))
  if text_width:
    pooling = 2 * pool_width + pool_width + 3 * conv(pool_width, pool_width)
    total += pooling + conv(pool_width, width) + 2 * width
    total += conv(T5_XXL, text_width)
  return total


def adm(
  width,
  text_width=0,
  pool_width=T5_XXL,
  mult=(1, 2, 3, 4),
  blocks=3,
  attending=(1, 2, 3),
):
  """The layout of guided-diffusion: level 0 has no attention."""

  def res(i, o):
    skip = conv(i, o) if i != o else 0
    scale_shift = conv(4 * width, 2 * o)
    return 2 * i + conv(i, o, 3) + scale_shift + 2 * o + conv(o, o, 3) + skip

  def attend(level, c):
    return attention(c, c, True, text_width) if level in attending else 0

  h, skips, last = width, [width], len(mult) - 1
  total = conv(3, width, 3) + embedding(width, 1, text_width, pool_width)
  for level, m in enumerate(mult):
    c = m * width
    for _ in range(blocks):
      total += res(h, c) + attend(level, c)
      h = c
      skips.append(c)
    if level < last:
      total += res(c, c)
      skips.append(c)
  total += 2 * res(h, h) + attend(last, h)
  for level, m in reversed(list(enumerate(mult))):
    c = m * width
    for _ in range(blocks + 1):
      total += res(h + skips.pop(), c) + attend(level, c)
      h = c
    total += res(c, c) if level else 0
  return total + 2 * width + conv(width, 3, 3)


def efficient(blocks, embed_dim, text_width):
  """Figs. A.27-A.30 with two images in, and scale and shift everywhere."""

  def res(i, o):
    scale_shift = conv(4 * embed_dim, 2 * o)
    branch = 2 * i + conv(i, o, 3) + scale_shift + 2 * o + conv(o, o, 3)
    return branch + conv(i, o)

  def body(i, spec):
    c = spec.channels
    total = res(i, c) + (spec.num_res_blocks - 1) * res(c, c)
    if spec.text_cross_attention:
      total += attention(c, 2 * c, spec.self_attention, text_width)
    return total

  h = blocks[0].channels
  total = conv(6, h, 3) + embedding(embed_dim, 2, text_width)
  for spec in blocks:
    total += conv(h, spec.channels, 3) + body(spec.channels, spec)
    h = spec.channels
  for i, spec in reversed(list(enumerate(blocks))):
    skip = spec.channels if i + 1 < len(blocks) else 0
    pixels = math.prod(spec.strides)  # the convolution makes all four at once
    total += body(h + skip, spec)
    total += conv(spec.channels, spec.channels * pixels, 3)
    h = spec.channels
  return total + 2 * h + conv(h, 3)


def test_adm_imagenet_64():
  """Published: 295.9M.

  That model has two things more: an embedding of 1000 classes, as wide as the
  time embedding, and three more output channels, for its learned variances.
  """
  ours = count(UNet(embed_dim=192), text=False)
  assert ours == adm(192)
  classes, variances = 1000 * 4 * 192, 192 * 9 * 3 + 3
  assert round((ours + classes + variances) / 1e5) == 2959


@pytest.mark.parametrize(
  ("width", "millions"), [(192, 320), (256, 568), (320, 886), (512, 2263)]
)
def test_the_papers_base_nets(width, millions):
  """App. F.1, whose 2B is printed; 2098M of it are the layout without text.

  Text is projected to 4 embed_dim before it is pooled and attended to.
  """
  assert width != 512 or round(adm(width) / 1e6) == 2098
  net = UNet(embed_dim=width, text_width=4 * width, pool_projected=True)
  ours = count(net)
  assert ours == adm(width, text_width=4 * width, pool_width=4 * width)
  assert round(ours / 1e6) == millions


def test_pooling_of_the_encoders_full_width():
  assert count(UNet()) == adm(512, text_width=2048)


def test_the_papers_super_resolution_nets():
  """App. F.2 and F.3: 600M and 400M are stated in Sec. 4.1.

  The tables, which differ by self-attention alone, cannot give both.
  """
  second = count(EfficientUNet(), factor=4)
  assert second == efficient(SR256_BLOCKS, 128, 1024)
  assert 5.83e8 < second < 5.84e8
  blocks = (*SR256_BLOCKS[:-1], CROSS)
  third = count(EfficientUNet(blocks=blocks), factor=4)
  assert third == efficient(blocks, 128, 1024)
  # Two blocks lose keys and values of 1024 channels, 2048 wide.
  assert second - third == 4 * conv(1024, 2048)
