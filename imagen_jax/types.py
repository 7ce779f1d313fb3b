"""Types that cross layers: text, its embeddings and a net's conditioning."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

# The mesh axes that shard the rows of a batch, in this order. In the opposite
# order XLA (of jaxlib 0.10.2) silently computes wrong gradients when data, fsdp
# and tensor all have several devices: it confuses the rows of two devices.
BATCH_AXES = ("fsdp", "data")


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """Describes the ids with which a text encoder was trained, beside its words.

  Attributes:
    before: the ids before a text.
    after: the id after a text.
    pad: the id at padding.
    unknown: the id of what has no other; None if every text has ids.
  """

  before: tuple[int, ...]
  after: int
  pad: int
  unknown: int | None

  @property
  def empty(self) -> tuple[int, ...]:
    """The ids of the empty text."""
    return (*self.before, self.after)


@flax.struct.dataclass
class TextEmbedding:
  """Holds a batch of encoded prompts.

  Attributes:
    tokens: float [B, L, D], the encoder's outputs.
    mask: bool [B, L], True for a real token and False for padding.
    null: the null text, row by row; None is the paper's zeros.
  """

  tokens: jax.Array
  mask: jax.Array
  null: "TextEmbedding | None" = None

  def drop(self, dropped: jax.Array) -> "TextEmbedding":
    """Replaces the prompts where dropped [B] is True by the null text.

    The paper's null text is embeddings of zeros (Sec. 4.1). Not in the paper:
    one of its tokens counts as real. It thus means the same whichever prompt it
    replaces, and no softmax is left without a key.
    """
    tokens, mask = 0.0, jnp.arange(self.mask.shape[1])[None, :] == 0
    if self.null is not None:
      tokens, mask = self.null.tokens, self.null.mask
    return self.replace(
      tokens=jnp.where(dropped[:, None, None], tokens, self.tokens),
      mask=jnp.where(dropped[:, None], mask, self.mask),
    )

  def null_text(self) -> "TextEmbedding":
    """Returns the null text for every example, shaped like this batch."""
    return self.drop(jnp.ones(self.mask.shape[0], bool))


@flax.struct.dataclass
class Conditioning:
  """Holds the inputs of a net besides z_t and its noise level.

  Attributes:
    text: the prompts; None for a net without text.
    lowres: float [B, h, w, C] in [-1, 1], the previous stage's augmented image,
      at its own resolution unless the stage upsamples it; None for a base
      stage.
    aug_level: float [B] in [0, 1], the augmentation level of lowres; None for a
      base stage.
  """

  text: TextEmbedding | None = None
  lowres: jax.Array | None = None
  aug_level: jax.Array | None = None
