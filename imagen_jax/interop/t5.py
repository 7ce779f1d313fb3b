"""The encoder of T5 v1.1 from its public homes, and back.

t5x's names and shapes are ours. Hugging Face has others, its kernels and the
table of relative positions transposed, and the table of the vocabulary under
one of two names or under both.
"""

import os
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import flax.traverse_util
import numpy as np
from etils import epath

from imagen_jax.interop import hub, t5x
from imagen_jax.interop.tensors import Tensor, check, place, quantised
from imagen_jax.parallel.sharding import Placement

T = TypeVar("T", Tensor, np.ndarray)
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
  """T5's encoder in the tree and dtypes of `like` (shapes), placed.

  Kernels that are int8 there are made so of the floats that are read, one by
  one. ValueError as tensors, or if an array is damaged.
  """
  return place(quantised(tensors(path, like), like), like, placement)


def tensors(path: str | os.PathLike, like: Any) -> dict[str, Tensor]:
  """The encoder's tensors by our paths, of the shapes of `like`, not yet read.

  All are floats, and so without the scales that int8 kernels have there.

  The path is that of a safetensors file, ours or Hugging Face's; of a folder
  with model.safetensors or its shards and their index; of such an index; or
  of a t5x checkpoint, which may be on gs://. Of a full model the decoder is
  left alone. ValueError, naming the file, if it is missing, damaged, a pickle
  or not of this encoder.
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


def hugging_face_names(names: Iterable[str]) -> dict[str, str]:
  """Our paths -> the names of transformers' T5EncoderModel."""
  return {name: _hugging_face_name(name) for name in names}


def save_hugging_face(folder: str | os.PathLike, params: Any) -> None:
  """Writes model.safetensors and config.json, numbers as they are.

  transformers' T5EncoderModel.from_pretrained(folder) reads them. Folders that
  lack are made. ValueError if they cannot be written.
  """
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  state = {
    name: np.ascontiguousarray(_turned(ours, np.asarray(flat[ours])))
    for ours, name in hugging_face_names(flat).items()
  }
  hub.save(folder, state, hugging_face_config(params))


def hugging_face_config(params: Any) -> dict[str, Any]:
  """config.json of an encoder, read off its parameters' shapes."""
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


def save_t5x(folder: str | os.PathLike, params: Any) -> None:
  """Writes a t5x checkpoint of the encoder alone, numbers as they are.

  The folder, which may be on gs://, is a new one: checkpoint_0 of a run.
  ValueError if it is not new or cannot be written.
  """
  t5x.save(epath.Path(folder), params)


def _from_hugging_face(
  path: epath.Path, found: dict[str, Tensor], shapes: dict[str, tuple]
) -> dict[str, Tensor]:
  """The tensors by our names, and so laid out; checked by theirs."""
  found, names = _encoder(found), hugging_face_names(shapes)
  theirs = {
    names[n]: shape[::-1] if _is_turned(n) else shape
    for n, shape in shapes.items()
  }
  check(path, found, theirs)
  return {n: _turned(n, found[name]) for n, name in names.items()}


def _encoder(found: dict[str, Tensor]) -> dict[str, Tensor]:
  """Without the decoder of a full model, and with one table of two."""
  found = {
    name: tensor
    for name, tensor in found.items()
    if not name.startswith(("decoder.", "lm_head."))
  }
  same = found.pop(_SAME_TABLE, None)
  return ({_TABLE: same} if same else {}) | found


def _is_turned(name: str) -> bool:
  """Whether Hugging Face has a parameter's axes the other way round."""
  return name.endswith(("/kernel", "/rel_embedding"))


def _turned(name: str, value: T) -> T:
  return value.T if _is_turned(name) else value


def _hugging_face_name(name: str) -> str:
  match = re.fullmatch(r"encoder/layers_(\d+)/(.+)", name)
  if not match:
    return _NAMES[name]
  return f"encoder.block.{match[1]}.{_IN_LAYER[match[2]]}"
