"""One training step, pure: (state, text_params, batch) -> (state, metrics)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from imagen_jax.runtime.sharding import Placement, like_param
from imagen_jax.stage import Draws, Stage
from imagen_jax.types import TextEmbedding

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
  """What a step changes; params and ema are the net's.

  There is no random key: a step's randomness is fold_in(seed, step), so a
  resumed run repeats an undisturbed one.
  """

  step: jax.Array
  params: Any
  ema: Any
  opt_state: Any


def init_state(
  params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step; ema starts as params."""
  ema = jax.tree.map(jnp.copy, params)
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, ema, optimizer.init(params))


def place_state(
  state: TrainState,
  optimizer: optax.GradientTransformation,
  placement: Placement,
) -> TrainState:
  """Shardings of a state (of shapes): all of a parameter in the same places."""
  params = placement.params(state.params)
  whole = NamedSharding(placement.mesh, PartitionSpec())
  opt_state = optax.tree.map_params(
    optimizer,
    like_param,
    state.opt_state,
    state.params,
    params,
    transform_non_params=lambda _: whole,
  )
  return TrainState(whole, params, params, opt_state)


def batch_loss(
  stage: Stage,
  encoder: nn.Module,
  params: Any,
  text_params: Any,
  draws: Draws,
  batch: Batch,
) -> tuple[jax.Array, jax.Array]:
  """Per-example loss and logsnr [B] of a batch of pictures and token ids.

  params are the net's, text_params the encoder's. batch: image [B, H, W, 3],
  tokens and mask [B, L], and lowres [B, h, w, 3] for a super-resolution stage.
  """
  ids, mask = batch["tokens"], batch["mask"]
  tokens = encoder.apply({"params": text_params}, ids, mask)
  text = TextEmbedding(tokens, mask)
  return stage.loss(params, draws, batch["image"], text, batch.get("lowres"))


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """min(decay, (1 + n) / (10 + n)): early on, the average is a short one.

  Ours: of averaged weights the paper does not speak.
  """
  n = step.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def split(rows: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...], part i of rows i, i + parts, ...

  So a device that has neighbouring rows has as many of each part.
  """
  return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)


def make_train_step(
  stage: Stage,
  encoder: nn.Module,
  optimizer: optax.GradientTransformation,
  *,
  decay: float,
  seed: int,
  accumulate: int = 1,
  shardings: Any = None,
) -> Callable[
  [TrainState, Any, Batch], tuple[TrainState, dict[str, jax.Array]]
]:
  """step(state, text_params, batch) -> (state, metrics).

  The text encoder, of weights text_params, is frozen (Sec. 2.1). The batch is
  computed in `accumulate` parts, one after the other, which give one gradient.
  shardings of the parameters, if given, are those of their gradients too: left
  to itself the compiler sums these into whole ones on every device.
  """

  @jax.value_and_grad
  def loss_and_grad(params, text_params, draws, batch):
    if shardings is not None:
      params = jax.lax.with_sharding_constraint(params, shardings)
    losses, _ = batch_loss(stage, encoder, params, text_params, draws, batch)
    return losses.mean()

  def accumulated(params, text_params, draws, batch):
    if accumulate == 1:
      return loss_and_grad(params, text_params, draws, batch)

    def add(total, part):
      one = loss_and_grad(params, text_params, *part)
      return jax.tree.map(jnp.add, total, one), None

    nothing = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    parts = jax.tree.map(lambda rows: split(rows, accumulate), (draws, batch))
    total, _ = jax.lax.scan(add, nothing, parts)
    return jax.tree.map(lambda leaf: leaf / accumulate, total)

  def step(state, text_params, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    draws = stage.draw(key, len(batch["image"]))
    loss, grads = accumulated(state.params, text_params, draws, batch)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    d = ema_decay(state.step, decay)
    ema = jax.tree.map(lambda e, p: d * e + (1 - d) * p, state.ema, params)
    metrics = {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
    }
    return TrainState(state.step + 1, params, ema, opt_state), metrics

  return step
