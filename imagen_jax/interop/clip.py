"""Weights of CLIP's text tower in Hugging Face's format."""

import os
import re
from typing import Any

from etils import epath

from imagen_jax.interop import hub
from imagen_jax.interop.encoders import Sizes, both, of_torch
from imagen_jax.interop.tensors import Tensor, place
from imagen_jax.nets.clip_text import ClipTextEncoder
from imagen_jax.parallel.sharding import Placement

SIZES = Sizes(
  name="OpenAI's CLIP",
  types=("clip", "clip_text_model"),
  keys={
    "vocab_size": "vocab_size",
    "emb_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_encoder_layers": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
    "max_length": "max_position_embeddings",
  },
  # config.json may leave out the sizes of the smallest text tower.
  defaults={
    "vocab_size": 49408,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
  },
  fixed={
    "hidden_act": ("quick_gelu", "quick_gelu"),
    "layer_norm_eps": (1e-5, 1e-5),
  },
  section="text_config",
)
# The pieces of vocab.json, which all of OpenAI's CLIPs share.
VOCABULARIES = {
  49_408: "ef2e77f920c8ee34bcec0be2892899f4ce24fc9313f26b079633a97a7f829105"
}
# The image tower, and what follows the penultimate layer.
_UNUSED = re.compile(
  r"vision_model\.|(visual|text)_projection\.|logit_scale$|final_layer_norm\.|"
  r"embeddings\.position_ids$"
)
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_IN_LAYER = "encoder.layers.{}."
_NAMES = {
  "token_embedder/embedding": "embeddings.token_embedding.weight",
  "position_embedder/embedding": "embeddings.position_embedding.weight",
} | both(
  [
    ("layers_{}/attention_norm", _IN_LAYER + "layer_norm1"),
    ("layers_{}/attention/query", _IN_LAYER + "self_attn.q_proj"),
    ("layers_{}/attention/key", _IN_LAYER + "self_attn.k_proj"),
    ("layers_{}/attention/value", _IN_LAYER + "self_attn.v_proj"),
    ("layers_{}/attention/out", _IN_LAYER + "self_attn.out_proj"),
    ("layers_{}/mlp_norm", _IN_LAYER + "layer_norm2"),
    ("layers_{}/wi", _IN_LAYER + "mlp.fc1"),
    ("layers_{}/wo", _IN_LAYER + "mlp.fc2"),
  ]
)


def load(
  path: str | os.PathLike, like: Any, placement: Placement | None = None
) -> Any:
  """Loads the text tower in the tree and dtypes of `like`.

  Args:
    path: as in tensors.
    like: the shapes and dtypes of the parameters.
    placement: how to shard them; None puts them on the first device.

  Raises:
    ValueError: as tensors, or an array is damaged.
  """
  return place(tensors(path, like), like, placement)


def tensors(path: str | os.PathLike, like: Any) -> dict[str, Tensor]:
  """Opens the text tower's tensors by their paths in `like`; reads none yet.

  The image tower of a full CLIP is ignored, and so is the text tower's last
  layer.

  Args:
    path: a safetensors file, an index of shards, or a folder of either.
    like: the shapes of the encoder's parameters.

  Raises:
    ValueError: the file, which the sentence names, is missing, damaged, a
      pickle or of another encoder.
  """
  path = epath.Path(path)
  found = {
    name.removeprefix("text_model."): tensor
    for name, tensor in hub.tensors(path).items()
  }
  found = {n: tensor for n, tensor in found.items() if not _UNUSED.match(n)}
  last = sum(name.startswith("layers_") for name in like)
  found = {n: tensor for n, tensor in found.items() if _layer(n) != last}
  return of_torch(path, found, like, _NAMES)


def check_weights(
  path: epath.Path, encoder: ClipTextEncoder, like: Any
) -> None:
  """Checks the weights of an encoder, and its sizes, without reading them.

  Raises:
    ValueError: the weights are missing, damaged, or of another encoder.
  """
  SIZES.check(path, encoder)
  tensors(path, like)


def _layer(name: str) -> int | None:
  """Returns the number of the layer that a tensor belongs to, if it is one."""
  found = _LAYER.match(name)
  return int(found[1]) if found else None
