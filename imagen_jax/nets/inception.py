"""Inception v3 of the graph of 2015-12-05, by whose features FID is defined.

Modules and parameters have the names of that graph's nodes. The graph differs
from the Inception v3 of other libraries in its pools and its 1008 classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

CLASSES = 1008
_BATCH_NORM_EPS = 1e-3
# A convolution is (kernel height, kernel width, channels), with "/2" for stride
# 2 without padding. A tower is a list of convolutions.
_HALVE = "/2"


class BatchNorm(nn.Module):
  """Normalises channels by stored moments."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x [B, H, W, C] normalised."""
    shape = x.shape[-1:]
    gamma = self.param("gamma", nn.initializers.ones, shape)
    beta = self.param("beta", nn.initializers.zeros, shape)
    mean = self.param("moving_mean", nn.initializers.zeros, shape)
    variance = self.param("moving_variance", nn.initializers.ones, shape)
    scale = gamma * jax.lax.rsqrt(variance + _BATCH_NORM_EPS)
    return (x - mean) * scale + beta


class Conv(nn.Module):
  """Applies convolution, batch normalisation and ReLU.

  Attributes:
    height: of the kernel.
    width: of the kernel.
    channels: of the output.
    stride: 1 or 2.
    padding: "SAME" or "VALID".
  """

  height: int
  width: int
  channels: int
  stride: int = 1
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns features [B, h, w, channels] of x [B, H, W, C]."""
    kernel = self.param(
      "conv2d_params",
      nn.initializers.lecun_normal(),
      (self.height, self.width, x.shape[-1], self.channels),
    )
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      self.padding,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision="highest",
    )
    return nn.relu(BatchNorm(name="batchnorm")(x))


class Parallel(nn.Module):
  """Concatenates convolutions of the same input.

  Attributes:
    convs: the convolutions.
  """

  convs: tuple[tuple, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the concatenated features of x [B, H, W, C]."""
    found = [
      _conv(conv, _numbered("conv", i))(x) for i, conv in enumerate(self.convs)
    ]
    return jnp.concatenate(found, axis=-1)


class Tower(nn.Module):
  """Applies convolutions one after the other.

  Attributes:
    convs: the convolutions.
    parallel: convolutions of the last one's output, to concatenate; or none.
  """

  convs: tuple[tuple, ...]
  parallel: tuple[tuple, ...] = ()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns features of x [B, H, W, C]."""
    for i, conv in enumerate(self.convs):
      x = _conv(conv, _numbered("conv", i))(x)
    return Parallel(self.parallel, name="mixed")(x) if self.parallel else x


class Block(nn.Module):
  """Concatenates a convolution, towers and a pool of the same input.

  Attributes:
    conv: the convolution; none if empty.
    towers: convolutions and parallel ones of each tower.
    pool: "average" or "max" of 3x3 pixels.
    project: channels of the pool's convolution; 0 halves the pool instead.
  """

  conv: tuple
  towers: tuple[tuple[tuple, ...], ...]
  pool: str
  project: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns features of x [B, H, W, C]."""
    found = [_conv(self.conv, "conv")(x)] if self.conv else []
    for i, tower in enumerate(self.towers):
      found.append(Tower(*tower, name=_numbered("tower", i))(x))
    if not self.project:
      found.append(_halve(x))
    else:
      pooled = _average(x) if self.pool == "average" else _max(x, 1, "SAME")
      name = _numbered("tower", len(self.towers))
      found.append(Tower(((1, 1, self.project),), name=name)(pooled))
    return jnp.concatenate(found, axis=-1)


class InceptionV3(nn.Module):
  """Computes the features of images that FID and other scores compare."""

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """Computes features of images.

    Args:
      x: float32 [B, 299, 299, 3], (image - 128) / 128 of 0..255. Other sizes
        from 75 pixels work too.

    Returns:
      Features [B, n] by tap: "64", "192", "768" and "2048" are averages over
      space, "logits" [B, 1008] those of the classes, with their biases.
    """
    taps = {}
    x = Conv(3, 3, 32, 2, "VALID", name="conv")(x)
    x = Conv(3, 3, 32, 1, "VALID", name="conv_1")(x)
    x = _halve(Conv(3, 3, 64, name="conv_2")(x))
    taps["64"] = x.mean((1, 2))
    x = Conv(1, 1, 80, 1, "VALID", name="conv_3")(x)
    x = _halve(Conv(3, 3, 192, 1, "VALID", name="conv_4")(x))
    taps["192"] = x.mean((1, 2))
    for i, block in enumerate(_blocks()):
      x = block.clone(name=_numbered("mixed", i), parent=self)(x)
      if i == 7:
        taps["768"] = x.mean((1, 2))
    taps["2048"] = x = x.mean((1, 2))
    taps["logits"] = Classes(name="softmax")(x)
    return taps


class Classes(nn.Module):
  """Computes the logits of the classes."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, 1008] of x [B, C]."""
    init = nn.initializers.lecun_normal()
    weights = self.param("weights", init, (x.shape[-1], CLASSES))
    biases = self.param("biases", nn.initializers.zeros, (CLASSES,))
    return jnp.dot(x, weights, precision="highest") + biases


def _blocks() -> list[Block]:
  """Returns the 11 blocks, from mixed to mixed_10."""
  new = lambda *args: Block(*args, parent=None)
  blocks = [
    new(
      (1, 1, 64),
      (
        (((1, 1, 48), (5, 5, 64)),),
        (((1, 1, 64), (3, 3, 96), (3, 3, 96)),),
      ),
      "average",
      project,
    )
    for project in (32, 64, 64)
  ]
  halving = ((1, 1, 64), (3, 3, 96), (3, 3, 96, _HALVE))
  blocks.append(new((3, 3, 384, _HALVE), ((halving,),), "max", 0))
  for n in (128, 160, 160, 192):
    once = ((1, 1, n), (1, 7, n), (7, 1, 192))
    twice = ((1, 1, n), (7, 1, n), (1, 7, n), (7, 1, n), (1, 7, 192))
    blocks.append(new((1, 1, 192), ((once,), (twice,)), "average", 192))
  first = ((1, 1, 192), (3, 3, 320, _HALVE))
  second = ((1, 1, 192), (1, 7, 192), (7, 1, 192), (3, 3, 192, _HALVE))
  blocks.append(new((), ((first,), (second,)), "max", 0))
  # The last block's pool is a maximum, which only this graph has.
  for pool in ("average", "max"):
    split = ((1, 3, 384), (3, 1, 384))
    towers = (
      (((1, 1, 384),), split),
      (((1, 1, 448), (3, 3, 384)), split),
    )
    blocks.append(new((1, 1, 320), towers, pool, 192))
  return blocks


def _conv(conv: tuple, name: str) -> Conv:
  """Returns a convolution of (height, width, channels), or these and "/2"."""
  height, width, channels, *rest = conv
  if rest:
    return Conv(height, width, channels, 2, "VALID", name=name)
  return Conv(height, width, channels, name=name)


def _numbered(name: str, i: int) -> str:
  """Returns TensorFlow's name of the i-th of a kind: conv, conv_1, ..."""
  return f"{name}_{i}" if i else name


def _max(x: jax.Array, stride: int, padding: str) -> jax.Array:
  """Pools by the maximum of 3x3 pixels."""
  return nn.max_pool(x, (3, 3), (stride, stride), padding)


def _halve(x: jax.Array) -> jax.Array:
  """Downsamples by 2 by the maximum of 3x3 pixels."""
  return _max(x, 2, "VALID")


def _average(x: jax.Array) -> jax.Array:
  """Averages 3x3 pixels; beyond the border there are none to count."""
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
