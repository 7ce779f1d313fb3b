"""What a config computes, as functions with the shapes of their arguments.

To be compiled ahead of time, for devices that need not be there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import build
from imagen_jax.parallel import mesh
from imagen_jax.parallel.sharding import Placement, placed
from imagen_jax.stage import CHANNELS, Stage
from imagen_jax.training.setup import net_shapes, set_up, text_shapes
from imagen_jax.types import TextEmbedding


@dataclasses.dataclass(frozen=True)
class Program:
  """A function and the shapes, dtypes and places of its arguments.

  params: the trees of weights among these, to tell what of them is replicated.
  """

  name: str
  batch: int
  fn: Callable[..., Any]
  args: tuple[Any, ...]
  params: Any
  out_shardings: Any = None
  donate: tuple[int, ...] = ()


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  """An array that is not there."""
  return jax.ShapeDtypeStruct(sizes, dtype)


def train_program(config: Mapping[str, Any], devices: Mesh) -> Program:
  """The training step of a stage, as the verb train runs it."""
  setup = set_up(build.run(config), devices)
  return Program(
    "train",
    setup.run.data.batch_size,
    setup.step,
    (setup.state, setup.text, setup.batch),
    params=(setup.state.params, setup.text),
    out_shardings=setup.outputs,
    donate=(0,),
  )


def embed_program(config: Mapping[str, Any], devices: Mesh) -> Program:
  """The text encoder on one batch of prompts."""
  text = build.text(config["text"])
  weights = text_shapes(text, Placement(devices))
  rows = text.batch_size
  ids = shape(rows, text.length, dtype=jnp.int32)
  mask = shape(rows, text.length, dtype=jnp.bool_)
  inputs = placed((ids, mask), mesh.rows_sharding(devices, rows))
  encode = text.embedder.__call__
  return Program("embed", rows, encode, (weights, *inputs), params=weights)


def sample_programs(
  config: Mapping[str, Any], devices: Mesh
) -> Iterator[Program]:
  """The text encoder and every stage's sampler, for one batch of pictures."""
  cascade, text = build.cascade(config), build.text(config["text"])
  yield embed_program(config, devices)
  rows = config["batch_size"]
  place = mesh.rows_sharding(devices, rows)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  words = TextEmbedding(
    shape(rows, text.length, text.encoder.emb_dim),
    shape(rows, text.length, dtype=jnp.bool_),
  )
  words = words.replace(null=words if text.null == "empty" else None)
  for name, stage, sampling in zip(
    cascade.names, cascade.stages, cascade.samplings, strict=True
  ):
    net = net_shapes(stage, text)
    net = placed(net, Placement(devices).params(net))
    side = stage.lowres_size
    lowres = side and shape(rows, side, side, CHANNELS)
    inputs = placed((keys, words, lowres), place)
    yield Program(
      f"sample {name}",
      rows,
      partial(Stage.sample, stage, sampling=sampling),
      (net, *inputs),
      params=net,
    )


def mode_of(config: Mapping[str, Any]) -> str:
  """What a config is of: a stage, a cascade, or else a text encoder."""
  kinds = {"stage": "train", "stages": "sample"}
  return next((kinds[key] for key in kinds if key in config), "embed")


def of(
  config: Mapping[str, Any], mode: str, devices: Mesh
) -> Iterator[Program]:
  """What a config's mode compiles."""
  if mode == "train":
    yield train_program(config, devices)
  elif mode == "embed":
    yield embed_program(config, devices)
  else:
    yield from sample_programs(config, devices)
