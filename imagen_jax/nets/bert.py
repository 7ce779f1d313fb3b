"""The encoder of BERT (Devlin et al. 2018, arXiv 1810.04805).

Norms follow the sums, and positions are a learned table, so that a text has at
most max_length tokens. The text is the first segment of two. The pooler and the
heads of pretraining are left out: a diffusion model reads the tokens.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.nets.blocks import run_blocks
from imagen_jax.nets.layers import at_own_precision, gelu, pin_batch
from imagen_jax.types import SpecialIds

_INIT = nn.initializers.normal(0.02)
SEGMENTS = 2  # of BERT's input: the text, and another one in pretraining


class BertEncoder(nn.Module):
  """Encodes ids [B, L] int under mask [B, L] bool (True = real token).

  Norms, softmax and the residual stream are float32.
  """

  special = SpecialIds(before=(101,), after=102, pad=0, unknown=100)

  vocab_size: int  # rows of the embedding table
  emb_dim: int  # width of a token
  num_heads: int
  num_encoder_layers: int
  mlp_dim: int  # hidden width of the MLP
  max_length: int = 512  # rows of the table of positions
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
    """Returns the encoded tokens, float32 [B, L, emb_dim]."""
    table = lambda rows, name: Table(rows, self.emb_dim, name=name)
    x = pin_batch(table(self.vocab_size, "token_embedder")(ids))
    x += table(self.max_length, "position_embedder")(jnp.arange(ids.shape[1]))
    x += table(SEGMENTS, "segment_embedder")(jnp.zeros((), jnp.int32))
    x = norm(1e-12, "embedding_norm")(x)
    layers = [
      BertLayer(self.num_heads, self.mlp_dim, self.dtype, name=f"layers_{i}")
      for i in range(self.num_encoder_layers)
    ]
    step = lambda unit, x, _: (pin_batch(unit[0](x, mask)), None)
    x, _ = run_blocks(
      step, [(layer,) for layer in layers], pin_batch(x), scan=self.scan
    )
    return x


class BertLayer(nn.Module):
  """Computes x = norm(x + attention(x)), x = norm(x + mlp(x)).

  Fields are as in BertEncoder.
  """

  num_heads: int
  mlp_dim: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps x [B, L, D] under mask [B, L] to [B, L, D]."""
    h = SelfAttention(self.num_heads, self.dtype, name="attention")(x, mask)
    x = norm(1e-12, "attention_norm")(x + h)
    h = dense(self.mlp_dim, self.dtype, "wi")(x)
    h = dense(x.shape[-1], self.dtype, "wo")(gelu(h))
    return norm(1e-12, "mlp_norm")(x + h)


class SelfAttention(nn.Module):
  """Computes softmax(q k^T / sqrt(d)) v over the keys where mask is True.

  Attributes:
    num_heads: the number of heads.
    dtype: of the matrix products.
    causal: whether a token attends only to itself and to earlier ones.
  """

  num_heads: int
  dtype: jnp.dtype
  causal: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    """Maps x [B, L, D] under mask [B, L] to [B, L, D]."""
    q, k, v = (self._heads(x, name) for name in ("query", "key", "value"))
    mask = mask[:, None, None, :].astype(bool)
    y = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=self.causal)
    return dense(x.shape[-1], self.dtype, "out")(y.reshape(*y.shape[:2], -1))

  def _heads(self, x, name):
    """Projects to [B, L, heads, head_dim]; the kernel joins the heads."""
    y = pin_batch(dense(x.shape[-1], self.dtype, name)(x))
    return y.reshape(*y.shape[:2], self.num_heads, -1)


class Table(nn.Module):
  """Looks up embedding[ids]."""

  rows: int
  emb_dim: int

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    """Embeds ids [...] to float32 [..., emb_dim]."""
    table = self.param("embedding", _INIT, (self.rows, self.emb_dim))
    # An id outside the table gives NaN, not the row of another id.
    return jnp.take(table, ids, axis=0, mode="fill").astype(jnp.float32)


def dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
  """Returns a dense layer with a bias."""
  return nn.Dense(features, dtype=dtype, kernel_init=_INIT, name=name)


def norm(epsilon: float, name: str) -> nn.LayerNorm:
  """Returns a LayerNorm in float32, with two-pass statistics."""
  return nn.LayerNorm(
    epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name
  )


def check_heads(emb_dim: int, num_heads: int) -> None:
  """Raises ValueError unless heads of equal widths make up a token."""
  if emb_dim % num_heads:
    raise ValueError(
      f"emb_dim is {emb_dim}, expected a multiple of num_heads, {num_heads}"
    )
