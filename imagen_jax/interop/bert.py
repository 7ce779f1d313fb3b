"""Weights of BERT's encoder in Hugging Face's format."""

import os
import re
from typing import Any

from etils import epath

from imagen_jax.interop import hub
from imagen_jax.interop.encoders import Sizes, both, of_torch
from imagen_jax.interop.tensors import Tensor, place
from imagen_jax.nets.bert import SEGMENTS, BertEncoder
from imagen_jax.parallel.sharding import Placement

SIZES = Sizes(
  name="BERT",
  types=("bert",),
  keys={
    "vocab_size": "vocab_size",
    "emb_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_encoder_layers": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "max_length": "max_position_embeddings",
  },
  defaults={"max_position_embeddings": 512},
  fixed={
    "hidden_act": ("gelu", "gelu"),
    "layer_norm_eps": (1e-12, 1e-12),
    "position_embedding_type": ("absolute", "absolute"),
    "type_vocab_size": (SEGMENTS, SEGMENTS),
    "is_decoder": (False, False),
  },
)
# The pieces of vocab.txt of bert-base-uncased and bert-large-uncased.
VOCABULARIES = {
  30_522: "dc11fb6abe5ce403c840e3dfae78f15064c2cfc2069bb48a84ba0ef89f2c846a"
}
_UNUSED = re.compile(r"pooler\.|cls\.|embeddings\.position_ids$")
_IN_LAYER = "encoder.layer.{}."
_NAMES = {
  "token_embedder/embedding": "embeddings.word_embeddings.weight",
  "position_embedder/embedding": "embeddings.position_embeddings.weight",
  "segment_embedder/embedding": "embeddings.token_type_embeddings.weight",
} | both(
  [
    ("embedding_norm", "embeddings.LayerNorm"),
    ("layers_{}/attention/query", _IN_LAYER + "attention.self.query"),
    ("layers_{}/attention/key", _IN_LAYER + "attention.self.key"),
    ("layers_{}/attention/value", _IN_LAYER + "attention.self.value"),
    ("layers_{}/attention/out", _IN_LAYER + "attention.output.dense"),
    ("layers_{}/attention_norm", _IN_LAYER + "attention.output.LayerNorm"),
    ("layers_{}/wi", _IN_LAYER + "intermediate.dense"),
    ("layers_{}/wo", _IN_LAYER + "output.dense"),
    ("layers_{}/mlp_norm", _IN_LAYER + "output.LayerNorm"),
  ]
)


def load(
  path: str | os.PathLike, like: Any, placement: Placement | None = None
) -> Any:
  """Loads BERT's encoder in the tree and dtypes of `like`.

  Args:
    path: as in tensors.
    like: the shapes and dtypes of the parameters.
    placement: how to shard them; None puts them on the first device.

  Raises:
    ValueError: as tensors, or an array is damaged.
  """
  return place(tensors(path, like), like, placement)


def tensors(path: str | os.PathLike, like: Any) -> dict[str, Tensor]:
  """Opens the encoder's tensors by their paths in `like`; reads none yet.

  The pooler and the heads of pretraining are ignored.

  Args:
    path: a safetensors file, an index of shards, or a folder of either.
    like: the shapes of the encoder's parameters.

  Raises:
    ValueError: the file, which the sentence names, is missing, damaged, a
      pickle or of another encoder.
  """
  path = epath.Path(path)
  found = {_todays(n): tensor for n, tensor in hub.tensors(path).items()}
  found = {n: t for n, t in found.items() if not _UNUSED.match(n)}
  return of_torch(path, found, like, _NAMES)


def check_weights(path: epath.Path, encoder: BertEncoder, like: Any) -> None:
  """Checks the weights of an encoder, and its sizes, without reading them.

  Raises:
    ValueError: the weights are missing, damaged, or of another encoder.
  """
  SIZES.check(path, encoder)
  tensors(path, like)


def _todays(name: str) -> str:
  """Returns a tensor's name in BertModel, also from models with heads.

  TensorFlow's weights, from which the first ones were made, have gamma and
  beta.
  """
  name = name.removeprefix("bert.")
  name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
  return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
