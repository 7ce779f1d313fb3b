"""Config -> objects. The only file that reads a ConfigDict.

A sub-config's keys are the fields of what it describes, which also holds the
defaults; a key or a value that does not fit them is an error naming both.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax.build.keys import (
  as_tuple,
  check_names,
  fields,
  fill,
  fits,
  keywords,
  kind,
  pick,
  section,
  settings,
)
from imagen_jax.build.loss import loss_fields
from imagen_jax.cascade import Cascade
from imagen_jax.diffusion import gaussian, guidance, samplers, schedules
from imagen_jax.diffusion.augment import bilinear_aligned
from imagen_jax.interop import deepfloyd_if, diffusers, published, t5
from imagen_jax.nets import layers
from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.t5 import T5Encoder, int8_dense
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement
from imagen_jax.stage import Sampling, Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.settings import Text
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.training import optimizers
from imagen_jax.training.settings import Data, Training

ACTIVATIONS = diffusers.ACTIVATIONS
TEXT_NORMS = {"layer": layers.layer_norm, "group": layers.text_group_norm}
SCHEDULES = {
  "cosine": schedules.CosineSchedule,
  "linear": schedules.LinearSchedule,
  "discrete_cosine": schedules.DiscreteCosineSchedule,
}
PREDICTIONS = {"eps": gaussian.EPS, "x": gaussian.X, "v": gaussian.V}
ENLARGE = {"bilinear_aligned": bilinear_aligned}
SAMPLERS = {
  "ddim": samplers.DDIM,
  "ancestral": samplers.Ancestral,
  "ancestral_learned": samplers.LearnedAncestral,
  "dpm_solver++": samplers.DPMSolver,
}
THRESHOLDS = {
  "none": guidance.NoThreshold,
  "static": guidance.StaticThreshold,
  "dynamic": guidance.DynamicThreshold,
}
OPTIMIZERS = {"adam": optimizers.adam, "adafactor": optimizers.adafactor}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# What a stage's config holds.
STAGE_KEYS = (
  "text",
  "stage",
  "data",
  "optimizer",
  "train",
  "mesh",
  "sampling",
  "weights",
)


def module(
  config: Mapping[str, Any], where: str, make: Callable[..., nn.Module]
) -> nn.Module:
  """A linen module of a class, or made by a function."""
  resolved = {}
  named = {
    "dtype": DTYPES,
    "activation": ACTIVATIONS,
    "text_norm": TEXT_NORMS,
  }
  for key in named.keys() & section(config, where).keys():
    what = f"config {where}.{key}"
    resolved[key] = pick(config[key], what, named[key])
  blocks = as_tuple(config.get("blocks"))
  if isinstance(blocks, tuple):
    resolved["blocks"] = tuple(
      fill(BlockSpec, block, f"{where}.blocks[{i}]", fields(BlockSpec))
      for i, block in enumerate(blocks)
    )
  hints = fields(make) if isinstance(make, type) else keywords(make)
  return fill(make, config, where, hints, **resolved)


NETS = {
  "UNet": UNet,
  "EfficientUNet": EfficientUNet,
  "diffusers": published.unet,
}


def stage(config: Mapping[str, Any], where: str = "stage") -> Stage:
  """config.stage -> Stage."""
  cls, net = kind(section(config, where).get("net"), f"{where}.net", NETS)
  resolved = {"net": module(net, f"{where}.net", cls)}
  resolved |= loss_fields(config, where)
  for key in ("schedule", "aug_schedule"):
    if key in config:
      resolved[key] = settings(config[key], f"{where}.{key}", SCHEDULES)
  named = dict(prediction=PREDICTIONS, loss_space=PREDICTIONS, enlarge=ENLARGE)
  for key in named:
    if config.get(key) is not None:
      resolved[key] = pick(config[key], f"config {where}.{key}", named[key])
  return fill(Stage, config, where, fields(Stage), **resolved)


def sampling(config: Mapping[str, Any], where: str = "sampling") -> Sampling:
  """config.sampling -> Sampling."""
  resolved = {}
  for key, options in (("step", SAMPLERS), ("threshold", THRESHOLDS)):
    if key in section(config, where):
      resolved[key] = settings(config[key], f"{where}.{key}", options)
  if isinstance(name := config.get("timesteps"), str):
    what = f"config {where}.timesteps"
    resolved["timesteps"] = pick(name, what, deepfloyd_if.TIMESTEPS)
  return fill(Sampling, config, where, fields(Sampling), **resolved)


def check_keys(config: Mapping[str, Any]) -> None:
  """ValueError for a key that a stage's config does not have, or lacks."""
  check_names(config, "", STAGE_KEYS)


def as_json(config: Any) -> dict[str, Any]:
  """A stage's config as JSON, the defaults of data and train filled in."""
  return json.loads(config.to_json_best_effort()) | {
    "data": dataclasses.asdict(data(config["data"])),
    "train": dataclasses.asdict(training(config["train"])),
  }


def mesh(config: Mapping[str, Any]) -> MeshShape:
  """config.mesh -> MeshShape; without it, the whole weights on every device."""
  return fill(MeshShape, config.get("mesh", {}), "mesh", fields(MeshShape))


def data(config: Mapping[str, Any]) -> Data:
  """config.data -> Data."""
  return fill(Data, config, "data", fields(Data))


def training(config: Mapping[str, Any]) -> Training:
  """config.train -> Training."""
  return fill(Training, config, "train", fields(Training))


def text(config: Mapping[str, Any]) -> Text:
  """config.text -> Text."""
  encoder = section(config, "text").get("encoder")
  encoder = module(encoder, "text.encoder", T5Encoder)
  if config.get("int8") is True:
    encoder = encoder.clone(dense=int8_dense)
  return fill(Text, config, "text", fields(Text), encoder=encoder)


def tokenizer(config: Text) -> Tokenizer:
  """The tokenizer of config.text."""
  path = published.packaged(config.vocabulary)
  return Tokenizer(path, config.length, lowercase=config.lowercase)


def load_text(config: Text, placement: Placement | None = None) -> Any:
  """The weights of config.text's encoder, ours or published ones, placed."""
  return t5.load(published.packaged(config.weights), config.shapes(), placement)


def text_encoder(config: Text, params: Any) -> TextEncoder:
  """Prompts -> TextEmbedding with the given weights."""
  return TextEncoder(
    config.embedder, params, tokenizer(config), config.batch_size
  )


def init_net(built: Stage, config: Text, key: jax.Array) -> Any:
  """Random weights of a stage's net, for config.text's embeddings."""
  dim = config.encoder.emb_dim
  return built.init(key, text_length=config.length, text_dim=dim)


def learning_rate(config: Mapping[str, Any]) -> optax.Schedule:
  """config.optimizer -> its learning rate, by the number of the update."""
  keys = {
    "learning_rate": "peak",
    "warmup_steps": "warmup_steps",
    "decay_steps": "decay_steps",
  }
  given = {keys[key]: config[key] for key in keys if key in config}
  return optimizers.learning_rate(**given)


def optimizer(config: Mapping[str, Any]) -> optax.GradientTransformation:
  """config.optimizer -> optax, with the paper's learning-rate schedule."""
  make, rest = kind(config, "optimizer", OPTIMIZERS)

  def assemble(
    *,
    learning_rate: float = 1e-4,
    warmup_steps: int = 10_000,
    decay_steps: int = 2_500_000,
    clip_norm: float | None = None,
    **others: Any,
  ) -> optax.GradientTransformation:
    rate = optimizers.learning_rate(
      peak=learning_rate, warmup_steps=warmup_steps, decay_steps=decay_steps
    )
    return optimizers.with_clipping(make(rate, **others), clip_norm)

  return fill(assemble, rest, "optimizer", keywords(assemble) | keywords(make))


def cascade(config: Mapping[str, Any]) -> Cascade:
  """A config whose `stages` names sub-configs -> Cascade."""
  names = as_tuple(section(config, "of a cascade").get("stages"))
  if not fits(names, tuple[str, ...]):
    raise ValueError(
      "config key stages is missing, expected a cascade's config, such as "
      "configs/shapes.py"
    )
  keys = ("stages", "text", "batch_size", *names)
  check_names(config, "", keys, optional=("mesh",))
  for name in names:
    check_names(config[name], f"{name}.", ("stage", "sampling", "weights"))
  if not fits(config["batch_size"], int) or config["batch_size"] < 1:
    raise ValueError(
      f"config batch_size is {config['batch_size']!r}, expected at least 1"
    )
  return Cascade(
    names,
    tuple(stage(config[n]["stage"], f"{n}.stage") for n in names),
    tuple(sampling(config[n]["sampling"], f"{n}.sampling") for n in names),
  )


def sampling_devices(
  config: Mapping[str, Any], devices: Sequence[Any] | None = None
) -> Mesh:
  """Returns a cascade config's mesh over all devices, or over those given.

  Without a mesh in the config, a batch's rows are spread over all devices of
  one process. ValueError for many processes without one.
  """
  if "mesh" not in config and jax.process_count() > 1:
    raise ValueError("the config has no mesh, expected one of all processes")
  return make_mesh(mesh(config), devices)


def move_weights(config: Any, to: str) -> int:
  """Has a config's hf:// paths lie in a folder, or with an owner; how many.

  The folder holds their repositories by name. ValueError as download.moved.
  """
  from imagen_jax.interop import download

  count = 0
  for key, value in config.items():
    if hasattr(value, "items"):
      count += move_weights(value, to)
    elif str(value).startswith(download.SCHEME):
      config[key] = download.moved(value, to)
      count += 1
  return count


def load_encoder(
  config: Mapping[str, Any], placement: Placement
) -> TextEncoder:
  """A cascade config's text encoder with its weights, placed."""
  words = text(config["text"])
  return text_encoder(words, load_text(words, placement))


def load_nets(
  config: Mapping[str, Any], built: Cascade, placement: Placement
) -> list[Any]:
  """The weights of a cascade config's stages, placed."""
  key = jax.random.key(0)
  words = text(config["text"])
  nets = []
  for name, member in zip(built.names, built.stages, strict=True):
    like = jax.eval_shape(lambda member=member: init_net(member, words, key))
    nets.append(published.load_net(config[name]["weights"], like, placement))
  return nets
