"""A training run: its settings, and the shardings of its arrays."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from imagen_jax.parallel import compiler, mesh
from imagen_jax.parallel.mesh import MeshShape
from imagen_jax.parallel.sharding import Placement, placed
from imagen_jax.stage import CHANNELS, Sampling, Stage
from imagen_jax.text.settings import AnyText, NoText
from imagen_jax.training.optimizers import Optimizer
from imagen_jax.training.settings import Data, Training
from imagen_jax.training.step import (
  Batch,
  TrainState,
  init_state,
  make_train_step,
  place_state,
)


@dataclasses.dataclass(frozen=True)
class Run:
  """Holds what a stage's config describes; ValueError if parts do not fit.

  Attributes:
    stage: the net, its schedule and its prediction.
    text: the frozen text encoder with the files of its weights and vocabulary;
      StoredText for embeddings of it, or NoText for an unconditional net.
    data: the examples and their batches.
    training: how long to train, and what to log and save meanwhile.
    sampling: how sample grids are sampled.
    optimizer: the optimizer and its learning rate.
    mesh: the devices along each axis.
  """

  stage: Stage
  text: AnyText
  data: Data
  training: Training
  sampling: Sampling
  optimizer: Optimizer
  mesh: MeshShape

  def __post_init__(self):
    self.stage.check_sampling(self.sampling)
    check_guidance(self.text, self.sampling)
    steps, decay_steps = self.training.steps, self.optimizer.decay_steps
    if decay_steps < steps:
      raise ValueError(
        f"optimizer.decay_steps is {decay_steps:,}, expected at least"
        f" train.steps, {steps:,}: the learning rate is 0 after the decay"
      )


def check_guidance(text: AnyText, sampling: Sampling) -> None:
  """Raises ValueError for guidance without a text encoder."""
  if isinstance(text, NoText) and sampling.guidance != 1:
    raise ValueError(
      f"sampling.guidance is {sampling.guidance}, expected 1: without a text"
      " (text=None) there is nothing to guide to"
    )


@dataclasses.dataclass(frozen=True)
class Setup:
  """Holds a run on a mesh of devices: its arrays' shardings and its functions.

  Attributes:
    run: the run's settings.
    devices: the mesh, which must be set where the functions are traced.
    placement: the sharding rules of parameters.
    state: shapes, dtypes and shardings of the training state.
    text: shapes, dtypes and shardings of the text encoder's weights.
    batch: shapes, dtypes and shardings of a batch.
    step: (state, text weights, batch) -> (state, metrics), not compiled yet.
  """

  run: Run
  devices: Mesh
  placement: Placement
  state: TrainState
  text: Any
  batch: Batch
  step: Callable[[TrainState, Any, Batch], tuple[TrainState, Any]]

  @property
  def places(self) -> TrainState:
    """The shardings of the state."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.state)

  @property
  def rows(self) -> NamedSharding:
    """The sharding of a batch, by its examples."""
    return self.batch["image"].sharding

  @property
  def outputs(self) -> tuple[TrainState, NamedSharding]:
    """The shardings of a step's outputs; metrics are replicated."""
    return self.places, mesh.replicated(self.devices)

  def initialise(self) -> TrainState:
    """Makes the first state from random weights, sharded."""
    run, key = self.run, jax.random.key(self.run.training.seed)
    net = jax.jit(
      lambda: init_net(run.stage, run.text, key),
      out_shardings=self.places.params,
    )
    return self.start_from(net())

  def start_from(self, params: Any) -> TrainState:
    """Makes the first state from given weights, which are donated."""
    make = jax.jit(
      lambda net: init_state(net, self.run.optimizer),
      donate_argnums=0,
      out_shardings=self.places,
    )
    return make(params)

  def compile(
    self, state: TrainState, text_params: Any, batch: Batch
  ) -> Callable[[TrainState, Any, Batch], tuple[TrainState, Any]]:
    """Compiles the step, which donates the state it is given."""
    step = jax.jit(self.step, donate_argnums=0, out_shardings=self.outputs)
    lowered = step.lower(state, text_params, batch)
    return lowered.compile(compiler_options=compiler.options())


def set_up(run: Run, devices: Mesh) -> Setup:
  """Assigns shardings to a run's arrays; computes and allocates nothing.

  Raises:
    ValueError: the batch does not divide over the devices.
  """
  training, optimizer = run.training, run.optimizer
  rows = mesh.batch_sharding(devices, run.data.batch_size, training.accumulate)
  placement = Placement(devices)
  state = jax.eval_shape(
    lambda net: init_state(net, optimizer), net_shapes(run.stage, run.text)
  )
  places = place_state(state, optimizer, placement)
  step = make_train_step(
    run.stage, run.text.embedder, optimizer,
    decay=training.ema_decay, seed=training.seed,
    accumulate=training.accumulate, shardings=places.params,
  )  # fmt: skip
  return Setup(
    run,
    devices,
    placement,
    placed(state, places),
    text_shapes(run.text, placement),
    placed(batch_shapes(run), rows),
    step,
  )


def init_net(stage: Stage, text: AnyText, key: jax.Array) -> Any:
  """Makes random weights of a stage's net, for the embeddings of text."""
  return stage.init(key, text_length=text.length, text_dim=text.dim)


@functools.lru_cache(maxsize=8)  # tracing the paper's nets takes a second
def net_shapes(stage: Stage, text: AnyText) -> Any:
  """Returns the shapes of a stage's weights, for the embeddings of text."""
  return jax.eval_shape(lambda: init_net(stage, text, jax.random.key(0)))


def text_shapes(text: AnyText, placement: Placement) -> Any:
  """Returns shapes, dtypes and shardings of the text encoder's weights."""
  shapes = text.shapes()
  return placed(shapes, placement.params(shapes))


def batch_shapes(run: Run) -> Batch:
  """Returns shapes and dtypes of a batch of all hosts."""
  stage, rows = run.stage, run.data.batch_size
  side = stage.train_size
  image = lambda side: jax.ShapeDtypeStruct(
    (rows, side, side, CHANNELS), jnp.float32
  )
  batch = {"image": image(side), **run.text.inputs(rows)}
  if stage.lowres_size:
    batch["lowres"] = image(side // stage.factor)
  return batch
