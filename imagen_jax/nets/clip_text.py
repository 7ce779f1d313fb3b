"""The text tower of CLIP (Radford et al. 2021, arXiv 2103.00020).

App. D.1 reads its penultimate layer. So ClipTextEncoder leaves out the last
layer, the final norm and the projection to the space of images. Not in the
paper: whether a norm follows the penultimate layer. None does here; the U-Nets'
own LayerNorm follows every text encoder (Sec. 2.5). CLIP scores need the entire
tower, which is ClipTextFeatures.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.nets.bert import (
  SelfAttention,
  Table,
  check_heads,
  dense,
  norm,
)
from imagen_jax.nets.blocks import run_blocks
from imagen_jax.nets.layers import at_own_precision, pin_batch
from imagen_jax.types import SpecialIds


class ClipTextEncoder(nn.Module):
  """Encodes ids [B, L] int under mask [B, L] bool (True = real token).

  A token attends only to itself and to earlier ones. Norms, softmax and the
  residual stream are float32.
  """

  # CLIP pads with the id that ends a text.
  special = SpecialIds(before=(49406,), after=49407, pad=49407, unknown=None)

  vocab_size: int  # rows of the embedding table
  emb_dim: int  # width of a token
  num_heads: int
  num_encoder_layers: int  # with the last one, which is not run
  mlp_dim: int  # hidden width of the MLP
  max_length: int = 77  # rows of the table of positions
  scan: bool = False  # whether the layers are compiled as one loop
  dtype: jnp.dtype = jnp.float32  # of the matrix products
  # Of products of float32: "highest" does not round the factors. "high" and
  # "default" are faster on TPUs and GPUs, and less exact.
  precision: str = "highest"

  def __post_init__(self):
    check_heads(self.emb_dim, self.num_heads)
    super().__post_init__()

  @nn.compact
  @at_own_precision
  def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the penultimate layer's tokens, float32 [B, L, emb_dim]."""
    return self._run(ids, mask, self.num_encoder_layers - 1)

  def _run(self, ids: jax.Array, mask: jax.Array, count: int) -> jax.Array:
    """Returns the tokens after the first `count` layers."""
    table = lambda rows, name: Table(rows, self.emb_dim, name=name)
    x = pin_batch(table(self.vocab_size, "token_embedder")(ids))
    x += table(self.max_length, "position_embedder")(jnp.arange(ids.shape[1]))
    layers = [
      ClipLayer(self.num_heads, self.mlp_dim, self.dtype, name=f"layers_{i}")
      for i in range(count)
    ]
    step = lambda unit, x, _: (pin_batch(unit[0](x, mask)), None)
    x, _ = run_blocks(
      step, [(layer,) for layer in layers], pin_batch(x), scan=self.scan
    )
    return x


class ClipTextFeatures(ClipTextEncoder):
  """Maps texts to the space that CLIP's images share."""

  features: int = 768  # dimensions of the space

  @nn.compact
  @at_own_precision
  def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns one vector for each text, float32 [B, features].

    It is the last real token's, which ends the text and attends to all of it.
    """
    x = self._run(ids, mask, self.num_encoder_layers)
    last = jnp.sum(mask, axis=1) - 1
    x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
    return projection(self.features)(norm(1e-5, "final_norm")(x))


class ClipLayer(nn.Module):
  """Computes x += attention(norm(x)), x += mlp(norm(x)), the sums in float32.

  Attributes:
    num_heads: as in ClipTextEncoder.
    mlp_dim: as in ClipTextEncoder.
    dtype: as in ClipTextEncoder.
    causal: whether a token attends only to itself and to earlier ones.
  """

  num_heads: int
  mlp_dim: int
  dtype: jnp.dtype
  causal: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps x [B, L, D] under mask [B, L] to [B, L, D]."""
    h = norm(1e-5, "attention_norm")(x)
    attention = SelfAttention(
      self.num_heads, self.dtype, causal=self.causal, name="attention"
    )
    x += attention(h, mask)
    h = dense(self.mlp_dim, self.dtype, "wi")(norm(1e-5, "mlp_norm")(x))
    return x + dense(x.shape[-1], self.dtype, "wo")(quick_gelu(h))


def quick_gelu(x: jax.Array) -> jax.Array:
  """Computes x sigmoid(1.702 x), CLIP's approximation of GELU."""
  return x * nn.sigmoid(1.702 * x)


def projection(features: int) -> nn.Dense:
  """Returns the linear map, in float32, to the space of texts and images."""
  return nn.Dense(
    features, use_bias=False, dtype=jnp.float32, name="projection"
  )
