"""The pytrees that cross layers: text embeddings and a net's conditioning."""

import flax.struct
import jax
import jax.numpy as jnp

# The mesh's axes that the rows of a batch are spread over, in this order. In
# the other one XLA (that of jaxlib 0.10.2) computes wrong gradients, without a
# word, where data, fsdp and tensor all have devices: it takes the rows of one
# device for those of another.
BATCH_AXES = ("fsdp", "data")


@flax.struct.dataclass
class TextEmbedding:
  """A batch of encoded prompts.

  tokens [B, L, D] float, the encoder's outputs; mask [B, L] bool, True where
  a token is real and False where it is padding. null: what stands in for no
  prompt, row by row; None is the paper's zeros.
  """

  tokens: jax.Array
  mask: jax.Array
  null: "TextEmbedding | None" = None

  def drop(self, dropped: jax.Array) -> "TextEmbedding":
    """Replaces the prompts where dropped [B] is True by the null prompt.

    The paper's is embeddings of zeros (Sec. 4.1). How many of its tokens
    count as real is ours, one, so that it has one meaning whatever prompt it
    stands in for and no softmax is left without a key.
    """
    tokens, mask = 0.0, jnp.arange(self.mask.shape[1])[None, :] == 0
    if self.null is not None:
      tokens, mask = self.null.tokens, self.null.mask
    return self.replace(
      tokens=jnp.where(dropped[:, None, None], tokens, self.tokens),
      mask=jnp.where(dropped[:, None], mask, self.mask),
    )

  def nothing(self) -> "TextEmbedding":
    """The null prompt for every example, shaped like this batch."""
    return self.drop(jnp.ones(self.mask.shape[0], bool))


@flax.struct.dataclass
class Conditioning:
  """What a net is told besides z_t and its noise level.

  text: the prompts, or None for a net without text. lowres [B, h, w, C] in
  [-1, 1]: the previous stage's picture, at its own resolution and already
  augmented. aug_level [B] in [0, 1]: how much noise lowres received.
  """

  text: TextEmbedding | None = None
  lowres: jax.Array | None = None
  aug_level: jax.Array | None = None
