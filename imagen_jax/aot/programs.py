"""The computations of a config, as functions with their arguments' shapes.

They are compiled ahead of time, for devices that need not be there.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from imagen_jax import build
from imagen_jax.cascade import carry_places
from imagen_jax.diffusion.samplers import Carry
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
from imagen_jax.text.settings import NoText, Text
from imagen_jax.training.setup import set_up, text_shapes
from imagen_jax.training.summary import model_flops
from imagen_jax.types import TextEmbedding


@dataclasses.dataclass(frozen=True)
class Program:
  """Describes a function and the shapes, dtypes and shardings of its arguments.

  Attributes:
    name: the name to report.
    batch: the number of examples or images.
    fn: the function.
    args: its arguments, as shapes with shardings.
    params: the trees of weights in args, of which replicated bytes are
      reported.
    out_shardings: the shardings of the results; None leaves them to JAX.
    donate: the indices of donated arguments.
    loop: how often the loop of unknown length runs, if there is one.
    count: counts the operations of one run; None counts those of fn(*args).
    training: what only a training step has; else None.
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
  training: "TrainingStep | None" = None

  def flops(self) -> int:
    """Counts the operations of one run, over all devices."""
    return self.count() if self.count else count_flops(self.fn, *self.args)


@dataclasses.dataclass(frozen=True)
class TrainingStep:
  """Describes what a run of training steps costs.

  Attributes:
    steps: the number of steps of the run.
    trained: the number of parameters that are trained.
    accumulate: the number of parts of a batch.
    useful: counts the operations that the model needs, without recomputation.
  """

  steps: int
  trained: int
  accumulate: int
  useful: Callable[[], int]


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  """Describes an array that is not allocated."""
  return jax.ShapeDtypeStruct(sizes, dtype)


def train_program(config: Mapping[str, Any], devices: Mesh) -> Program:
  """Returns the training step of a stage, as the verb train runs it."""
  setup = set_up(build.run(config), devices)
  run, params = setup.run, setup.state.params
  useful = lambda: model_flops(
    run.stage, run.text.embedder, params, setup.text, setup.batch
  )
  trained = sum(leaf.size for leaf in jax.tree.leaves(params))
  return Program(
    "train",
    run.data.batch_size,
    setup.step,
    (setup.state, setup.text, setup.batch),
    params=(params, setup.text),
    out_shardings=setup.outputs,
    donate=(0,),
    training=TrainingStep(
      run.training.steps, trained, run.training.accumulate, useful
    ),
  )


def embed_program(
  config: Mapping[str, Any], devices: Mesh, placement: Placement
) -> Program:
  """Returns the text encoder on one batch of prompts, as sampling encodes."""
  text = build.text(config["text"])
  weights = text_shapes(text, placement)
  rows = mesh.whole_rows(devices, text.batch_size)
  ids = shape(rows, text.length, dtype=jnp.int32)
  mask = shape(rows, text.length, dtype=jnp.bool_)
  inputs = placed((ids, mask), mesh.batch_sharding(devices, rows))
  encode = text.embedder.__call__
  return Program("embed", rows, encode, (weights, *inputs), params=weights)


def embedding(text: Text | NoText, rows: int) -> TextEmbedding | None:
  """Describes encoded prompts; None without a text encoder."""
  if isinstance(text, NoText):
    return None
  words = TextEmbedding(
    shape(rows, text.length, text.dim),
    shape(rows, text.length, dtype=jnp.bool_),
  )
  return words.replace(null=words if text.null == "empty" else None)


def stage_program(
  name: str,
  stage: Stage,
  sampling: Sampling,
  net: Any,
  words: TextEmbedding | None,
  rows: int,
  place: NamedSharding,
  places: NamedSharding | Carry,
) -> Program:
  """Returns one stage's sampler for a batch of images.

  Args:
    name: the stage's name.
    stage: the stage.
    sampling: how it is sampled.
    net: the shapes of the net's weights.
    words: the shapes of the prompts' embeddings; None for an unconditional net.
    rows: the number of images.
    place: the sharding of their rows.
    places: the shardings of the carry.
  """
  steps = sampling.num_steps
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  side = stage.lowres_size
  lowres = side and shape(rows, side, side, CHANNELS)
  carry = jax.eval_shape(lambda: stage.blank(rows))
  carry = placed(carry, places)
  inputs = placed(SamplingInputs(keys, words, lowres), place)
  args = sampling.args()
  # With bounds that are known, the operations in the loop can be counted.
  whole = lambda net, carry, *rest: stage.run(net, carry, 0, steps, *rest)
  return Program(
    f"sample {name}",
    rows,
    partial(run_stage.__wrapped__, stage, rows=places),
    (net, carry, 0, steps, inputs, args),
    params=net,
    donate=(1,),
    loop=steps,
    count=lambda: count_flops(whole, net, carry, inputs, args),
  )


def sample_programs(
  config: Mapping[str, Any], devices: Mesh
) -> Iterator[Program]:
  """Yields the text encoder and each stage's sampler, for a batch of images."""
  cascade, text = build.cascade(config), build.text(config["text"])
  rows = mesh.whole_rows(devices, config["batch_size"])
  words = embedding(text, rows)
  if words is not None:
    yield embed_program(config, devices, build.text_placement(devices))
  for name, stage, sampling in zip(
    cascade.names, cascade.stages, cascade.samplings, strict=True
  ):
    net = build.sampling_shapes(stage, text)
    height = name in build.height_stages(config, devices)
    net = placed(net, build.net_placement(devices, height).params(net))
    place = mesh.batch_sharding(devices, rows)
    places = carry_places(place, height)
    yield stage_program(name, stage, sampling, net, words, rows, place, places)


def mode_of(config: Mapping[str, Any]) -> str:
  """Returns a config's mode: train, sample or embed, by its keys."""
  kinds = {"stage": "train", "stages": "sample"}
  return next((kinds[key] for key in kinds if key in config), "embed")


def of(
  config: Mapping[str, Any], mode: str, devices: Mesh
) -> Iterator[Program]:
  """Yields the programs that a config's mode compiles."""
  if mode == "train":
    yield train_program(config, devices)
  elif mode == "embed":
    yield embed_program(config, devices, Placement(devices))
  else:
    yield from sample_programs(config, devices)
