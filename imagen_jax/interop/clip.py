"""Weights of CLIP's towers in Hugging Face's format."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from imagen_jax.interop import hub
from imagen_jax.interop.encoders import Sizes, both, of_torch
from imagen_jax.interop.tensors import Tensor, place
from imagen_jax.nets.clip_image import ClipImageFeatures
from imagen_jax.nets.clip_text import ClipTextEncoder, ClipTextFeatures
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
IMAGE_SIZES = Sizes(
  name="OpenAI's CLIP",
  types=("clip",),
  keys={
    "image_size": "image_size",
    "patch_size": "patch_size",
    "emb_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "mlp_dim": "intermediate_size",
  },
  # config.json may leave out the sizes of ViT-B/32.
  defaults={
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
  },
  fixed=SIZES.fixed | {"num_channels": (3, 3)},
  section="vision_config",
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
# Of both towers.
_SHARED = {
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
_NAMES = _SHARED | {
  "token_embedder/embedding": "embeddings.token_embedding.weight"
}
_TEXT_FEATURES = {
  name: f"text_model.{other}"
  for name, other in (
    _NAMES | both([("final_norm", "final_layer_norm")])
  ).items()
} | {"projection/kernel": "text_projection.weight"}
_IMAGE_FEATURES = {
  name: f"vision_model.{other}"
  for name, other in {
    **_SHARED,
    "class_embedding": "embeddings.class_embedding",
    "patches/kernel": "embeddings.patch_embedding.weight",
    # The name is misspelled in every published file.
    **both([("input_norm", "pre_layrnorm"), ("final_norm", "post_layernorm")]),
  }.items()
} | {"projection/kernel": "visual_projection.weight"}


@dataclasses.dataclass(frozen=True)
class Towers:
  """Holds the nets of a full CLIP.

  Attributes:
    text: the text tower.
    image: the image tower.
  """

  text: ClipTextFeatures
  image: ClipImageFeatures

  @property
  def name(self) -> str:
    """The name that OpenAI gives the model, such as ViT-L/14@336px."""
    net = self.image
    kind = {768: "B", 1024: "L"}.get(net.emb_dim, str(net.emb_dim))
    at = "" if net.image_size == 224 else f"@{net.image_size}px"
    return f"ViT-{kind}/{net.patch_size}{at}"

  @functools.cached_property
  def shapes(self) -> dict[str, Any]:
    """The shapes of the parameters, under "text" and "image"."""
    ids = jnp.zeros((1, self.text.max_length), jnp.int32)
    size = self.image.image_size
    image = jnp.zeros((1, size, size, 3))
    key = jax.random.key(0)
    return jax.eval_shape(
      lambda: {
        "text": self.text.init(key, ids, ids == 0)["params"],
        "image": self.image.init(key, image)["params"],
      }
    )


def towers(path: epath.Path) -> Towers:
  """Describes the nets of a full CLIP, from its config.json and weights.

  Args:
    path: a folder of config.json and safetensors.

  Raises:
    ValueError: there is no full CLIP, or not one of OpenAI's kind.
  """
  if not path.is_dir():
    raise ValueError(
      f"weights {path} are no folder, expected one with {hub.CONFIG} and"
      " safetensors of CLIP"
    )
  sizes, image = SIZES.read(path), IMAGE_SIZES.read(path)
  if sizes is None or image is None:
    raise ValueError(
      f"weights {path} have no {hub.CONFIG} of CLIP beside them, expected a"
      " folder of Hugging Face's files of both towers"
    )
  # config.json may state the dimensions three times, and differently.
  last = hub.tensors(path).get("visual_projection.weight")
  if last is None or len(last.shape) != 2:
    raise ValueError(
      f"weights {path} have no matrix visual_projection.weight, expected both"
      " towers of CLIP with their projections"
    )
  try:
    found = Towers(
      ClipTextFeatures(**sizes, features=last.shape[0]),
      ClipImageFeatures(**image, features=last.shape[0]),
    )
  except ValueError as error:
    raise ValueError(f"{hub.CONFIG} of weights {path}: {error}") from error
  tower_tensors(path, found.shapes)
  return found


def tower_tensors(
  path: epath.Path, like: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
  """Opens the tensors of both towers, under "text" and "image"; reads none.

  Args:
    path: as in tensors.
    like: the shapes of both towers' parameters.

  Raises:
    ValueError: as tensors.
  """
  found = {
    name: tensor
    for name, tensor in hub.tensors(path).items()
    if not name.endswith("position_ids") and name != "logit_scale"
  }
  is_text = lambda name: name.startswith("text_")
  text = {n: tensor for n, tensor in found.items() if is_text(n)}
  rest = {n: tensor for n, tensor in found.items() if not is_text(n)}
  return {
    "text": of_torch(path, text, like["text"], _TEXT_FEATURES),
    "image": of_torch(path, rest, like["image"], _IMAGE_FEATURES),
  }


def load_towers(path: epath.Path, like: Mapping[str, Any]) -> dict[str, Any]:
  """Loads both towers' parameters, under "text" and "image", in float32.

  Args:
    path: as in tensors.
    like: the shapes of the parameters.

  Raises:
    ValueError: as load.
  """
  found = tower_tensors(path, like)
  return {name: place(found[name], like[name]) for name in like}


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
