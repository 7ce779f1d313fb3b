"""Conversion of T5 v1.1's encoder from and to t5x and Hugging Face.

Our names and shapes are t5x's. Hugging Face has other names. It transposes
kernels and the table of relative positions, and stores the token embeddings
under one of two names or under both.
"""

import os
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import flax.traverse_util
import numpy as np
from absl import logging
from etils import epath

from imagen_jax.interop import encoders, hub, t5x
from imagen_jax.interop.tensors import Tensor, check, place, quantised, shown
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.parallel.sharding import Placement
from imagen_jax.text.settings import Text
from imagen_jax.text.tokenizer import Tokenizer

T = TypeVar("T", Tensor, np.ndarray)
VOCABULARY = "vocabulary_sha256"  # key in the metadata of weights
# spiece.model of google/t5-v1_1-*, which T5, T5 v1.1 and Flan-T5 share. It has
# 32,000 pieces. The file beside t5x's checkpoints adds 100 sentinels; its
# SHA-256 is unknown here. T5 rounds the rows of its table up.
T5_VOCABULARY = (
  "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
)
T5_PIECES, T5_ROWS = (32_000, 32_100), 32_128
SIZES = encoders.Sizes(
  name="T5 v1.1",
  types=("t5", "mt5"),
  keys={
    "vocab_size": "vocab_size",
    "emb_dim": "d_model",
    "num_heads": "num_heads",
    "num_encoder_layers": "num_layers",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "relpos_buckets": "relative_attention_num_buckets",
    "relpos_max_distance": "relative_attention_max_distance",
  },
  defaults={
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
  },
  fixed={
    "feed_forward_proj": ("gated-gelu", "relu"),
    "layer_norm_epsilon": (1e-6, 1e-6),
  },
)
_TABLE, _SAME_TABLE = "shared.weight", "encoder.embed_tokens.weight"
_NAMES = {
  "token_embedder/embedding": _TABLE,
  "encoder/relpos_bias/rel_embedding": (
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
  ),
  "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
}
_IN_LAYER = {
  "pre_attention_layer_norm/scale": "layer.0.layer_norm.weight",
  "attention/query/kernel": "layer.0.SelfAttention.q.weight",
  "attention/key/kernel": "layer.0.SelfAttention.k.weight",
  "attention/value/kernel": "layer.0.SelfAttention.v.weight",
  "attention/out/kernel": "layer.0.SelfAttention.o.weight",
  "pre_mlp_layer_norm/scale": "layer.1.layer_norm.weight",
  "mlp/wi_0/kernel": "layer.1.DenseReluDense.wi_0.weight",
  "mlp/wi_1/kernel": "layer.1.DenseReluDense.wi_1.weight",
  "mlp/wo/kernel": "layer.1.DenseReluDense.wo.weight",
}


def load(
  path: str | os.PathLike, like: Any, placement: Placement | None = None
) -> Any:
  """Loads T5's encoder in the tree and dtypes of `like`.

  Kernels that are int8 in `like` are quantised one by one as they are read.

  Args:
    path: as in tensors.
    like: the shapes and dtypes of the parameters.
    placement: how to shard them; None puts them on the first device.

  Raises:
    ValueError: as tensors, or an array is damaged.
  """
  return place(quantised(tensors(path, like), like), like, placement)


def tensors(path: str | os.PathLike, like: Any) -> dict[str, Tensor]:
  """Opens the encoder's tensors by their paths in `like`, and in its shapes.

  No tensor is read yet. All tensors are floats. So the scales of int8 kernels
  in `like` are left out. The decoder of a full model is ignored.

  Args:
    path: a safetensors file, this package's or Hugging Face's; a folder with
      model.safetensors or with shards and their index; such an index; or a t5x
      checkpoint, which may be on gs://.
    like: the shapes of the encoder's parameters.

  Raises:
    ValueError: the file, which the sentence names, is missing, damaged, a
      pickle or of another encoder.
  """
  path = epath.Path(path)
  wanted = flax.traverse_util.flatten_dict(like, sep="/")
  shapes = {
    name: leaf.shape
    for name, leaf in wanted.items()
    if not name.endswith("/kernel_scale")
  }
  if folder := t5x.find(path):
    found = t5x.encoder(folder, shapes)
  else:
    found = hub.tensors(path)
  if all("/" not in name for name in found):
    return _from_hugging_face(path, found, shapes)
  check(path, found, shapes)
  return found


def check_weights(path: epath.Path, encoder: T5Encoder, like: Any) -> None:
  """Checks the weights of an encoder without reading them.

  Args:
    path: as in tensors. Of a checkpoint on gs:// only its existence is checked.
    encoder: the encoder, whose sizes are compared with config.json.
    like: the shapes of its parameters.

  Raises:
    ValueError: the weights are missing, damaged, or of another encoder.
  """
  if "://" in str(path) and t5x.find(path):
    return
  SIZES.check(path, encoder)
  tensors(path, like)


def recorded_vocabulary(path: epath.Path) -> str | None:
  """Reads the fingerprint of the vocabulary that weights were trained with.

  Returns:
    The fingerprint; None if it is not recorded, as in published weights.
  """
  if folder := t5x.find(path):
    return t5x.read_notes(folder).get(VOCABULARY)
  return hub.metadata(path).get(VOCABULARY)


def check_vocabulary(
  path: epath.Path, text: Text, tokenizer: Tokenizer
) -> None:
  """Checks that an encoder was trained with a vocabulary.

  Weights that export or pretrain wrote record the vocabulary's SHA-256. For
  weights without it, and with T5's table of 32,128 rows, the vocabulary must
  have 32,000 or 32,100 pieces. A warning is logged if it has 32,000 pieces but
  not the published SHA-256. For all other weights only the size of the
  encoder's table is checked.

  Raises:
    ValueError: the encoder was trained with another vocabulary.
  """
  rows, pieces = text.encoder.vocab_size, tokenizer.vocab_size
  said = f"vocabulary {text.vocabulary}"
  if pieces > rows:
    raise ValueError(
      f"{said} has {pieces} pieces, but the text encoder embeds only {rows}"
    )
  recorded = recorded_vocabulary(path)
  if recorded and recorded != tokenizer.fingerprint:
    raise ValueError(
      f"{said} is not the one that weights {text.weights} were trained with: "
      f"its SHA-256 is {tokenizer.fingerprint[:16]}..., expected "
      f"{shown(recorded[:16])}..."
    )
  if recorded or rows != T5_ROWS or tokenizer.fingerprint == T5_VOCABULARY:
    return
  if pieces not in T5_PIECES:
    raise ValueError(
      f"{said} has {pieces} pieces, expected T5's published one of "
      f"{T5_PIECES[0]} or {T5_PIECES[1]}, as weights {text.weights} record none"
    )
  if pieces == T5_PIECES[0]:
    logging.warning(
      "%s is not T5's published one; weights %s do not record theirs",
      said,
      text.weights,
    )


def hugging_face_names(names: Iterable[str]) -> dict[str, str]:
  """Maps our paths to the names of transformers' T5EncoderModel."""
  return {name: _hugging_face_name(name) for name in names}


def save_hugging_face(
  folder: str | os.PathLike, params: Any, vocabulary: str | None = None
) -> None:
  """Writes model.safetensors and config.json, in the parameters' own dtypes.

  transformers' T5EncoderModel.from_pretrained(folder) reads them.

  Args:
    folder: the folder, which is created if it is missing.
    params: the encoder's parameters.
    vocabulary: the fingerprint of its vocabulary, if known.

  Raises:
    ValueError: a file cannot be written.
  """
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  state = {
    name: np.ascontiguousarray(_turned(ours, np.asarray(flat[ours])))
    for ours, name in hugging_face_names(flat).items()
  }
  config = hugging_face_config(params)
  hub.save(folder, state, config, metadata=vocabulary_note(vocabulary))


def vocabulary_note(fingerprint: str | None) -> dict[str, str]:
  """Returns the metadata that records the vocabulary of weights."""
  return {VOCABULARY: fingerprint} if fingerprint else {}


def hugging_face_config(params: Any) -> dict[str, Any]:
  """Derives config.json of an encoder from its parameters' shapes."""
  encoder = params["encoder"]
  vocabulary, width = params["token_embedder"]["embedding"].shape
  heads, buckets = encoder["relpos_bias"]["rel_embedding"].shape
  layer = encoder["layers_0"]
  return {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": vocabulary,
    "d_model": width,
    "d_kv": layer["attention"]["query"]["kernel"].shape[1] // heads,
    "d_ff": layer["mlp"]["wo"]["kernel"].shape[0],
    "num_layers": sum(name.startswith("layers_") for name in encoder),
    "num_heads": heads,
    "relative_attention_num_buckets": buckets,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": False,
    "is_encoder_decoder": False,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
  }


def save_t5x(
  folder: str | os.PathLike, params: Any, vocabulary: str | None = None
) -> None:
  """Writes a t5x checkpoint of the encoder, in the parameters' own dtypes.

  Args:
    folder: a new one, such as checkpoint_0 of a run; it may be on gs://.
    params: the encoder's parameters.
    vocabulary: the fingerprint of its vocabulary, if known.

  Raises:
    ValueError: the folder is not new or cannot be written.
  """
  t5x.save(epath.Path(folder), params, vocabulary_note(vocabulary))


def check_new(folder: str | os.PathLike) -> None:
  """Raises ValueError if a folder has a checkpoint, which save_t5x refuses."""
  t5x.check_new(epath.Path(folder))


def _from_hugging_face(
  path: epath.Path, found: dict[str, Tensor], shapes: dict[str, tuple]
) -> dict[str, Tensor]:
  """Checks Hugging Face's tensors, and converts their names and layouts."""
  found, names = _encoder(found), hugging_face_names(shapes)
  theirs = {
    names[n]: shape[::-1] if _is_turned(n) else shape
    for n, shape in shapes.items()
  }
  check(path, found, theirs)
  return {n: _turned(n, found[name]) for n, name in names.items()}


def _encoder(found: dict[str, Tensor]) -> dict[str, Tensor]:
  """Removes the decoder of a full model, and the second name of the table."""
  found = {
    name: tensor
    for name, tensor in found.items()
    if not name.startswith(("decoder.", "lm_head."))
  }
  same = found.pop(_SAME_TABLE, None)
  return ({_TABLE: same} if same else {}) | found


def _is_turned(name: str) -> bool:
  """Tests whether Hugging Face transposes a parameter."""
  return name.endswith(("/kernel", "/rel_embedding"))


def _turned(name: str, value: T) -> T:
  return value.T if _is_turned(name) else value


def _hugging_face_name(name: str) -> str:
  """Returns Hugging Face's name of our path."""
  match = re.fullmatch(r"encoder/layers_(\d+)/(.+)", name)
  if not match:
    return _NAMES[name]
  return f"encoder.block.{match[1]}.{_IN_LAYER[match[2]]}"
