"""Settings of the text encoder, and their defaults."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.text.encoder import (
  Embedder,
  Encoder,
  Stored,
  Unconditional,
)


@dataclasses.dataclass(frozen=True)
class Text:
  """Describes the frozen text encoder: its net, files and options.

  Attributes:
    encoder: the net.
    vocabulary: the path of T5's SentencePiece model, or of the tokenizer.json
      of BERT or CLIP.
    weights: the path of the encoder's weights.
    length: the tokens that a prompt is cut to, 2 to 10,000. BERT has at most
      512, CLIP 77. Not in the paper: it gives no length, so the default of 128
      is a choice.
    batch_size: the prompts to encode at a time, 1 to 1,000,000.
    attend_padding: as in Embedder.
    null: as in Embedder.
    lowercase: as in Tokenizer.
    int8: keeps T5's kernels, 97 % of T5-XXL, as one byte per weight.
  """

  encoder: Encoder
  vocabulary: str
  weights: str
  length: int = 128
  batch_size: int = 8
  attend_padding: bool = False
  null: str = "zeros"
  lowercase: bool = False
  int8: bool = False

  def __post_init__(self):
    _ = self.embedder  # checks null
    for name, least, most in (
      ("length", 2, 10_000),
      ("batch_size", 1, 1_000_000),
    ):
      value = getattr(self, name)
      if not least <= value <= most:
        raise ValueError(f"{name} is {value}, expected {least} to {most:,}")
    if self.length > (self.encoder.max_length or self.length):
      raise ValueError(
        f"length is {self.length}, expected at most {self.encoder.max_length},"
        " the positions of the text encoder"
      )

  @property
  def embedder(self) -> Embedder:
    """The encoder with these options."""
    return Embedder(self.encoder, self.attend_padding, self.null)

  def init(self, key: jax.Array) -> Any:
    """Initialises the encoder's weights at random."""
    ids = jnp.zeros((1, self.length), jnp.int32)
    return self.encoder.init(key, ids, ids == 0)["params"]

  def shapes(self) -> Any:
    """Returns the shapes of the encoder's weights, and the dtypes to keep.

    Weights are frozen, so float kernels and tables are kept in the dtype that
    they are computed in.
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
class StoredText:
  """Replaces Text where data.embeddings holds what it would compute.

  Attributes:
    text: the encoder that embedded the captions.
    folder: the folder that the verb embed wrote.
  """

  text: Text
  folder: str

  @property
  def length(self) -> int:
    """The number of tokens."""
    return self.text.length

  @property
  def dim(self) -> int:
    """The width of a token."""
    return self.text.dim

  @property
  def embedder(self) -> Stored:
    """The replacement of the encoder."""
    return Stored(self.text.null)

  def shapes(self) -> Any:
    """Returns the shapes of the null text, if that is no zeros."""
    if self.text.null == "zeros":
      return {}
    row = self.inputs(1)
    return {f"null_{name}": shape for name, shape in row.items()}

  def inputs(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the embeddings of a training batch."""
    shape = (rows, self.length)
    return {
      "tokens": jax.ShapeDtypeStruct((*shape, self.dim), jnp.bfloat16),
      "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
    }


@dataclasses.dataclass(frozen=True)
class NoText:
  """Replaces Text where nets are unconditional: config.text is None.

  Attributes:
    length: None: there are no tokens.
    dim: None: there are no embeddings.
    embedder: returns None for every batch.
  """

  length: None = None
  dim: None = None
  embedder: Unconditional = Unconditional()

  def shapes(self) -> Any:
    """Returns an empty tree: there are no weights."""
    return {}

  def inputs(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns an empty dictionary: captions are not read."""
    return {}


AnyText = Text | StoredText | NoText
