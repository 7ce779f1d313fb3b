"""The image tower of CLIP (Radford et al. 2021): a vision transformer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.nets.bert import Table, check_heads, norm
from imagen_jax.nets.clip_text import ClipLayer, projection
from imagen_jax.nets.layers import at_own_precision

_INIT = nn.initializers.normal(0.02)


class ClipImageFeatures(nn.Module):
  """Maps images to the space that CLIP's texts share.

  All is float32, as scores are compared.
  """

  image_size: int  # height and width of images, in pixels
  patch_size: int  # height and width of a patch, in pixels
  emb_dim: int  # width of a token
  num_heads: int
  num_layers: int
  mlp_dim: int  # hidden width of the MLP
  features: int = 768  # dimensions of the space
  # Of products of float32: "highest" does not round the factors. "high" and
  # "default" are faster on TPUs and GPUs, and less exact.
  precision: str = "highest"

  def __post_init__(self):
    check_heads(self.emb_dim, self.num_heads)
    if self.patch_size > self.image_size:
      raise ValueError(
        f"patch_size is {self.patch_size}, expected at most image_size,"
        f" {self.image_size}"
      )
    super().__post_init__()

  @nn.compact
  @at_own_precision
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps images [B, image_size, image_size, 3] to float32 [B, features].

    Images are normalised by CLIP's mean and standard deviation.
    """
    x = Patches(self.patch_size, self.emb_dim, name="patches")(images)
    first = self.param("class_embedding", _INIT, (self.emb_dim,))
    first = jnp.broadcast_to(first, (len(x), 1, self.emb_dim))
    x = jnp.concatenate([first, x], axis=1)
    count = x.shape[1]
    positions = Table(count, self.emb_dim, name="position_embedder")
    x = norm(1e-5, "input_norm")(x + positions(jnp.arange(count)))
    mask = jnp.ones(x.shape[:2], bool)
    layer = lambda name: ClipLayer(
      self.num_heads, self.mlp_dim, jnp.float32, causal=False, name=name
    )
    for i in range(self.num_layers):
      x = layer(f"layers_{i}")(x, mask)
    return projection(self.features)(norm(1e-5, "final_norm")(x[:, 0]))


class Patches(nn.Module):
  """Projects the patches of images, row by row, without a bias.

  Attributes:
    size: height and width of a patch, in pixels.
    emb_dim: width of a token.
  """

  size: int
  emb_dim: int

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to float32 [B, patches, emb_dim].

    Pixels beyond the last entire patch are not used.
    """
    batch, height, width, channels = images.shape
    p, rows, columns = self.size, height // self.size, width // self.size
    # The axes x, y, channels, outputs are those of torch's weight, reversed.
    kernel = self.param("kernel", _INIT, (p, p, channels, self.emb_dim))
    x = images[:, : rows * p, : columns * p]
    x = x.reshape(batch, rows, p, columns, p, channels)
    x = jnp.einsum("briajc,jicd->brad", x, kernel)
    return x.reshape(batch, rows * columns, self.emb_dim)
