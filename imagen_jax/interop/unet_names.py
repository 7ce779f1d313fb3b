"""Names and layouts of our UNet's parameters in diffusers' files."""

from collections.abc import Iterable

from imagen_jax.interop.layouts import LAYOUTS, Layout

_PLACES = {
  "combine_embs/time_mlp/dense_0": "time_embedding.linear_1",
  "combine_embs/time_mlp/dense_1": "time_embedding.linear_2",
  "combine_embs/aug_mlp/dense_0": "class_embedding.linear_1",
  "combine_embs/aug_mlp/dense_1": "class_embedding.linear_2",
  "combine_embs/text_pool/norm_in": "add_embedding.norm1",
  "combine_embs/text_pool": "add_embedding.pool",
  "combine_embs/text_pool/query": "add_embedding.pool.q_proj",
  "combine_embs/text_pool/key": "add_embedding.pool.k_proj",
  "combine_embs/text_pool/value": "add_embedding.pool.v_proj",
  "combine_embs/text_proj": "add_embedding.proj",
  "combine_embs/text_norm_out": "add_embedding.norm2",
  "text/dense": "encoder_hid_proj",
  "conv_in": "conv_in",
  "norm_out": "conv_norm_out",
  "conv_out": "conv_out",
}
_IN_BLOCK = {
  "norm_0": "norm1",
  "conv_0": "conv1",
  "emb_proj": "time_emb_proj",
  "norm_1": "norm2",
  "conv_1": "conv2",
  "skip": "conv_shortcut",
}
_IN_ATTENTION = {
  "norm": "group_norm",
  "norm_text": "norm_cross",
  "query": "to_q",
  "key": "to_k",
  "value": "to_v",
  "text_key": "add_k_proj",
  "text_value": "add_v_proj",
  "out": "to_out.0",
}
_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "cls_pos": "positional_embedding",
}


def diffusers_names(paths: Iterable[str]) -> dict[str, str]:
  """Maps our paths to the names of diffusers' UNet2DConditionModel."""
  paths = list(paths)
  levels = 1 + max(
    int(path.split("_")[1]) for path in paths if path.startswith("down_")
  )
  return {path: _name(path, levels) for path in paths}


def layout_of(path: str, shape: tuple[int, ...]) -> Layout:
  """Returns the layout in diffusers' files of our parameter of this shape."""
  *_, module, leaf = path.split("/")
  heads = {"query", "key", "value", "text_key", "text_value"}
  if leaf == "kernel" and len(shape) == 3:
    return LAYOUTS["heads_in" if module in heads else "heads_out"]
  if leaf == "kernel":
    return LAYOUTS["conv" if len(shape) == 4 else "dense"]
  return LAYOUTS["joined" if leaf == "bias" and len(shape) == 2 else "same"]


def _name(path: str, levels: int) -> str:
  """Returns diffusers' name of our path in a UNet of so many levels."""
  place, leaf = path.rsplit("/", 1)
  if place in _PLACES:
    return f"{_PLACES[place]}.{_LEAVES[leaf]}"
  block, part = place.split("/")
  side, level, *kind = block.split("_")
  if side == "mid":  # mid_res_0, mid_res_1, mid_attn
    index = kind[0] if kind else "0"
    within, kind = "mid_block", [level, index]
  else:
    index = int(level) if side == "down" else levels - 1 - int(level)
    within = f"{side}_blocks.{index}"
  parts = _IN_ATTENTION if kind[0] == "attn" else _IN_BLOCK
  group = {
    "attn": "attentions",
    "res": "resnets",
    "sample": f"{side}samplers",
  }[kind[0]]
  number = kind[1] if len(kind) > 1 else "0"
  return f"{within}.{group}.{number}.{parts[part]}.{_LEAVES[leaf]}"
