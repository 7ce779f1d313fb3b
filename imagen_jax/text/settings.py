"""The settings of the text encoder; configs say what differs from these."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.text.encoder import Embedder, Unconditional


@dataclasses.dataclass(frozen=True)
class Text:
  """The frozen text encoder: its net and the files of its two parts.

  Prompts are cut to length tokens (128 is ours), and encoded batch_size at a
  time. attend_padding and null are Embedder's, lowercase is Tokenizer's. With
  int8 the kernels, all but 3 % of T5-XXL, are kept in a byte per weight.
  """

  encoder: T5Encoder
  vocabulary: str
  weights: str
  length: int = 128
  batch_size: int = 8
  attend_padding: bool = False
  null: str = "zeros"
  lowercase: bool = False
  int8: bool = False

  def __post_init__(self):
    _ = self.embedder  # which checks null
    for name, least, most in (
      ("length", 2, 10_000),
      ("batch_size", 1, 1_000_000),
    ):
      value = getattr(self, name)
      if not least <= value <= most:
        raise ValueError(f"{name} is {value}, expected {least} to {most:,}")

  @property
  def embedder(self) -> Embedder:
    return Embedder(self.encoder, self.attend_padding, self.null)

  def init(self, key: jax.Array) -> Any:
    """Random weights of the encoder."""
    ids = jnp.zeros((1, self.length), jnp.int32)
    return self.encoder.init(key, ids, ids == 0)["params"]

  def shapes(self) -> Any:
    """Shapes of the encoder's weights, of the dtypes to keep them in.

    They are frozen: floats computed with in bfloat16 alone are kept so.
    """
    like = jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def kept(path, leaf):
      is_table = path[-1].key in ("kernel", "embedding")
      is_table &= leaf.dtype != jnp.int8
      dtype = self.encoder.dtype if is_table else leaf.dtype
      return jax.ShapeDtypeStruct(leaf.shape, dtype)

    return jax.tree_util.tree_map_with_path(kept, like)

  @property
  def dim(self) -> int:
    """The width of the encoder's outputs."""
    return self.encoder.emb_dim

  def inputs(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the captions of a training batch."""
    shape = (rows, self.length)
    return {
      "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
      "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
    }


@dataclasses.dataclass(frozen=True)
class NoText:
  """Stands in for Text where nets are unconditional: config.text is None."""

  length: None = None
  dim: None = None
  embedder: Unconditional = Unconditional()

  def shapes(self) -> Any:
    """Returns no weights."""
    return {}

  def inputs(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns nothing: captions are not read."""
    return {}
