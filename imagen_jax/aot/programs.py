"""What a config computes, as functions with the shapes of their arguments.

To be compiled ahead of time, for devices that need not be there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from imagen_jax import build
from imagen_jax.parallel import mesh
from imagen_jax.parallel.flops import count_flops
from imagen_jax.parallel.sharding import Placement, placed
from imagen_jax.stage import (
  CHANNELS,
  Sampling,
  SamplingInputs,
  Stage,
  run_stage,
)
from imagen_jax.text.settings import NoText
from imagen_jax.training.setup import net_shapes, set_up, text_shapes
from imagen_jax.types import TextEmbedding


@dataclasses.dataclass(frozen=True)
class Program:
  """A function and the shapes, dtypes and places of its arguments.

  params: the trees of weights among these, to tell what of them is replicated.
  loop: how often its loop of unknown length runs, if it has one.
  count: the operations of one run, if they are not those of fn(*args).
  """

  name: str
  batch: int
  fn: Callable[..., Any]
  args: tuple[Any, ...]
  params: Any
  out_shardings: Any = None
  donate: tuple[int, ...] = ()
  loop: int | None = None
  count: Callable[[], int] | None = None

  def flops(self) -> int:
    """Counts the operations of one run, of the whole program on all devices."""
    return self.count() if self.count else count_flops(self.fn, *self.args)


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


def stage_program(
  name: str,
  stage: Stage,
  sampling: Sampling,
  net: Any,
  words: TextEmbedding | None,
  rows: int,
  place: NamedSharding,
) -> Program:
  """One stage's sampler for a batch of images, whose rows lie as in place.

  net and words are shapes, of the net's weights and of the prompts, if there
  are any; rows is the number of images.
  """
  steps = sampling.num_steps
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  side = stage.lowres_size
  lowres = side and shape(rows, side, side, CHANNELS)
  carry = jax.eval_shape(lambda: stage.blank(rows))
  carry, inputs = placed((carry, SamplingInputs(keys, words, lowres)), place)
  args = sampling.args()
  # With bounds that are known, the operations in the loop can be counted.
  whole = lambda net, carry, *rest: stage.run(net, carry, 0, steps, *rest)
  return Program(
    f"sample {name}",
    rows,
    partial(run_stage.__wrapped__, stage, rows=place),
    (net, carry, 0, steps, inputs, args),
    params=net,
    donate=(1,),
    loop=steps,
    count=lambda: count_flops(whole, net, carry, inputs, args),
  )


def sample_programs(
  config: Mapping[str, Any], devices: Mesh
) -> Iterator[Program]:
  """The text encoder and every stage's sampler, for one batch of images."""
  cascade, text = build.cascade(config), build.text(config["text"])
  rows, words = config["batch_size"], None
  if not isinstance(text, NoText):
    yield embed_program(config, devices)
    words = TextEmbedding(
      shape(rows, text.length, text.dim),
      shape(rows, text.length, dtype=jnp.bool_),
    )
    words = words.replace(null=words if text.null == "empty" else None)
  for name, stage, sampling in zip(
    cascade.names, cascade.stages, cascade.samplings, strict=True
  ):
    net = net_shapes(stage, text)
    net = placed(net, Placement(devices).params(net))
    place = mesh.rows_sharding(devices, rows)
    yield stage_program(name, stage, sampling, net, words, rows, place)


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
