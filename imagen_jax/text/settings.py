"""The settings of the text encoder; configs say what differs from these."""

import dataclasses

from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.text.encoder import Embedder


@dataclasses.dataclass(frozen=True)
class Text:
  """The frozen text encoder: its net and the files of its two parts.

  Prompts are cut to length tokens (128 is ours), and encoded batch_size at a
  time. attend_padding and null are Embedder's, lowercase is Tokenizer's.
  """

  encoder: T5Encoder
  vocabulary: str
  weights: str
  length: int = 128
  batch_size: int = 8
  attend_padding: bool = False
  null: str = "zeros"
  lowercase: bool = False

  @property
  def embedder(self) -> Embedder:
    return Embedder(self.encoder, self.attend_padding, self.null)

  def __post_init__(self):
    _ = self.embedder  # which checks null
