"""Config -> objects. The only file that reads a ConfigDict.

A sub-config's keys are the fields of what it describes, which also holds the
defaults; a key that it has no field for is an error naming both.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from imagen_jax.cascade import Cascade
from imagen_jax.diffusion import gaussian, guidance, samplers, schedules
from imagen_jax.nets.efficient_unet import BlockSpec, EfficientUNet
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.nets.unet import UNet
from imagen_jax.runtime import weights
from imagen_jax.stage import Sampling, Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizer import Tokenizer
from imagen_jax.training import optimizers

PACKAGE = pathlib.Path(__file__).parent
NETS = {"UNet": UNet, "EfficientUNet": EfficientUNet}
SCHEDULES = {
  "cosine": schedules.CosineSchedule,
  "linear": schedules.LinearSchedule,
}
PREDICTIONS = {"eps": gaussian.EPS, "x": gaussian.X, "v": gaussian.V}
SAMPLERS = {
  "ddim": lambda: samplers.ddim_step,
  "ancestral": samplers.AncestralStep,
}
THRESHOLDS = {
  "none": lambda: guidance.no_threshold,
  "static": lambda: guidance.static_threshold,
  "dynamic": guidance.DynamicThreshold,
}
OPTIMIZERS = {"adam": optimizers.adam, "adafactor": optimizers.adafactor}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Data:
  """Where the training pictures come from.

  name and split as TFDS knows them; data_dir is where they are prepared.
  batch_size counts the examples of all hosts. cache keeps the resized
  pictures of the split in memory.
  """

  name: str = "captioned_shapes"
  split: str = "train"
  data_dir: str = "~/tensorflow_datasets"
  batch_size: int = 2048
  seed: int = 0
  cache: bool = False


@dataclasses.dataclass(frozen=True)
class Training:
  """How long to train and what to tell and keep meanwhile (steps)."""

  steps: int = 2_500_000
  seed: int = 0
  ema_decay: float = 0.9999
  log_every: int = 100
  sample_every: int = 10_000
  checkpoint_every: int = 5_000
  keep_checkpoints: int = 3
  num_samples: int = 16
  sample_split: str = "test"


@dataclasses.dataclass(frozen=True)
class Text:
  """The text encoder as a config describes it.

  weights "" means: start from random weights, which makes sense only where
  the encoder is trained. trainable trains it with the net; the paper's is
  frozen.
  """

  encoder: T5Encoder
  vocabulary: str
  length: int = 128
  weights: str = ""
  trainable: bool = False
  batch_size: int = 8


def pick(name: str, what: str, options: Mapping[str, Any]) -> Any:
  """options[name]; ValueError with the names there are otherwise."""
  if name not in options:
    known = ", ".join(map(repr, options))
    raise ValueError(f"{what} is {name!r}, expected one of {known}")
  return options[name]


def fill(
  build: Callable[..., Any],
  config: Mapping[str, Any],
  where: str,
  names: tuple[str, ...],
  **resolved: Any,
) -> Any:
  """build(**config) with the values in `resolved` in place of config's.

  names are the keys that there are; another one is a ValueError. So is a
  value of another kind than its default.
  """
  for key in config:
    if key not in names:
      raise ValueError(
        f"unknown config key {where}.{key}, expected one of {', '.join(names)}"
      )
  plain = {k: as_tuple(v) for k, v in config.items() if k not in resolved}
  try:
    return build(**plain, **resolved)
  except TypeError as error:
    raise ValueError(f"config {where}: {error}") from error


def as_tuple(value: Any) -> Any:
  """Lists become tuples, which are hashable."""
  if isinstance(value, list | tuple):
    return tuple(as_tuple(v) for v in value)
  return value


def field_names(cls: type, *without: str) -> tuple[str, ...]:
  """The names of a dataclass's (or linen module's) settings."""
  hidden = (
    {"parent", "name", *without} if issubclass(cls, nn.Module) else {*without}
  )
  return tuple(f.name for f in dataclasses.fields(cls) if f.name not in hidden)


def kind(
  config: Mapping[str, Any], where: str, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
  """A sub-config's `kind` among options, and the rest of it."""
  rest = dict(config.items())
  return pick(rest.pop("kind", None), f"{where}.kind", options), rest


def settings(config: Mapping[str, Any], where: str, options: Mapping) -> Any:
  """The object that a sub-config names by `kind` and describes."""
  cls, rest = kind(config, where, options)
  names = field_names(cls) if isinstance(cls, type) else ()
  return fill(cls, rest, where, names)


def module(config: Mapping[str, Any], where: str, cls: type) -> nn.Module:
  """A linen module of class cls."""
  resolved = {}
  if "dtype" in config:
    resolved["dtype"] = pick(config["dtype"], f"{where}.dtype", DTYPES)
  if "blocks" in config:
    resolved["blocks"] = tuple(
      fill(BlockSpec, b, f"{where}.blocks[{i}]", field_names(BlockSpec))
      for i, b in enumerate(config["blocks"])
    )
  return fill(cls, config, where, field_names(cls), **resolved)


def stage(config: Mapping[str, Any], where: str = "stage") -> Stage:
  """config.stage -> Stage."""
  cls, net = kind(config["net"], f"{where}.net", NETS)
  resolved = {"net": module(net, f"{where}.net", cls)}
  for key in ("schedule", "aug_schedule"):
    if key in config:
      resolved[key] = settings(config[key], f"{where}.{key}", SCHEDULES)
  for key in ("prediction", "loss_space"):
    if key in config:
      resolved[key] = pick(config[key], f"{where}.{key}", PREDICTIONS)
  return fill(Stage, config, where, field_names(Stage), **resolved)


def sampling(config: Mapping[str, Any], where: str = "sampling") -> Sampling:
  """config.sampling -> Sampling."""
  resolved = {}
  for key, options in (("step", SAMPLERS), ("threshold", THRESHOLDS)):
    if key in config:
      resolved[key] = settings(config[key], f"{where}.{key}", options)
  return fill(Sampling, config, where, field_names(Sampling), **resolved)


# What a stage's config holds. The two kinds of config, a stage's and a
# cascade's, share `text`.
STAGE_KEYS = (
  "text",
  "stage",
  "data",
  "optimizer",
  "train",
  "sampling",
  "weights",
)


def check_keys(config: Mapping[str, Any]) -> None:
  """ValueError for a key that a stage's config does not have, or lacks."""
  for key in sorted({*config} ^ {*STAGE_KEYS}):
    what = "is missing" if key in STAGE_KEYS else "is unknown"
    raise ValueError(
      f"config key {key} {what}, expected {', '.join(STAGE_KEYS)}"
    )


def data(config: Mapping[str, Any]) -> Data:
  """config.data -> Data."""
  return fill(Data, config, "data", field_names(Data))


def training(config: Mapping[str, Any]) -> Training:
  """config.train -> Training."""
  return fill(Training, config, "train", field_names(Training))


def text(config: Mapping[str, Any]) -> Text:
  """config.text -> Text, its paths resolved."""
  encoder = module(config["encoder"], "text.encoder", T5Encoder)
  return fill(Text, config, "text", field_names(Text), encoder=encoder)


def packaged(path: str) -> pathlib.Path:
  """A path as it is, or, starting with "weights/", within the package."""
  if path.startswith("weights/"):
    return PACKAGE / path
  return pathlib.Path(path).expanduser()


def tokenizer(config: Text) -> Tokenizer:
  """The tokenizer of config.text."""
  return Tokenizer(packaged(config.vocabulary), config.length)


def text_encoder(config: Text, params: Any) -> TextEncoder:
  """Prompts -> TextEmbedding with the given weights."""
  return TextEncoder(
    config.encoder, params, tokenizer(config), config.batch_size
  )


def init_text(config: Text, key: jax.Array) -> Any:
  """Random weights of config.text's encoder."""
  ids = jnp.zeros((1, config.length), jnp.int32)
  return config.encoder.init(key, ids, ids == 0)["params"]


def init_net(built: Stage, config: Text, key: jax.Array) -> Any:
  """Random weights of a stage's net, for config.text's embeddings."""
  dim = config.encoder.emb_dim
  return built.init(key, text_length=config.length, text_dim=dim)


def optimizer(config: Mapping[str, Any]) -> optax.GradientTransformation:
  """config.optimizer -> optax, with the paper's learning-rate schedule."""
  where = "optimizer"
  make, rest = kind(config, where, OPTIMIZERS)
  rate = {
    "peak": rest.pop("learning_rate", 1e-4),
    "warmup_steps": rest.pop("warmup_steps", 10_000),
    "decay_steps": rest.pop("decay_steps", 2_500_000),
  }
  max_norm = rest.pop("clip_norm", None)
  schedule = optimizers.learning_rate(**rate)
  names = tuple(make.__kwdefaults__)
  made = fill(lambda **kw: make(schedule, **kw), rest, where, names)
  return optimizers.with_clipping(made, max_norm)


def cascade(config: Mapping[str, Any]) -> Cascade:
  """A config whose `stages` names sub-configs -> Cascade."""
  names = tuple(config["stages"])
  for name in names:
    if name not in config:
      raise ValueError(f"config has no stage {name!r}, which stages names")
  return Cascade(
    names,
    tuple(stage(config[n]["stage"], f"{n}.stage") for n in names),
    tuple(sampling(config[n]["sampling"], f"{n}.sampling") for n in names),
  )


def load(
  config: Mapping[str, Any], built: Cascade
) -> tuple[TextEncoder, list[Any]]:
  """A cascade config's text encoder and the weights of its stages."""
  key = jax.random.key(0)
  words = text(config["text"])
  like = jax.eval_shape(lambda: init_text(words, key))
  encoder = weights.load(packaged(words.weights), "text", like)
  nets = []
  for name, member in zip(built.names, built.stages, strict=True):
    like = jax.eval_shape(lambda member=member: init_net(member, words, key))
    path = packaged(config[name]["weights"])
    nets.append(weights.load(path, "net", like))
  return text_encoder(words, encoder), nets
