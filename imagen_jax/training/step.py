"""One training step, pure: (state, text_params, batch) -> (state, metrics)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from imagen_jax.parallel.sharding import Placement, like_param
from imagen_jax.stage import Draws, Stage
from imagen_jax.text.encoder import Embedder, Unconditional

Batch = dict[str, jax.Array]
# Where the loss is told apart by log-SNR: below the first, ..., from the last.
LOGSNR_EDGES = (-10.0, -5.0, 0.0, 5.0, 10.0)


@flax.struct.dataclass
class Skipped:
  """How many steps changed nothing: in all, and of late in a row (int32 [])."""

  total: jax.Array
  in_a_row: jax.Array

  def after(self, finite: jax.Array) -> "Skipped":
    """The counts after a step that was finite, or was not."""
    return Skipped(
      self.total + ~finite, jnp.where(finite, 0, self.in_a_row + 1)
    )


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
  skipped: Skipped


def init_state(
  params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state before the first step; ema starts as params."""
  ema = jax.tree.map(jnp.copy, params)
  zero = lambda: jnp.zeros((), jnp.int32)
  skipped = Skipped(zero(), zero())
  return TrainState(zero(), params, ema, optimizer.init(params), skipped)


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
  return TrainState(whole, params, params, opt_state, Skipped(whole, whole))


def batch_loss(
  stage: Stage,
  embedder: Embedder | Unconditional,
  params: Any,
  text_params: Any,
  draws: Draws,
  batch: Batch,
) -> tuple[jax.Array, jax.Array]:
  """Per-example loss and logsnr [B] of a batch of pictures and token ids.

  params are the net's, text_params the encoder's. batch: image [B, H, W, 3];
  tokens and mask [B, L] unless the net is unconditional; and lowres
  [B, h, w, 3] for a super-resolution stage.
  """
  text = embedder.for_training(
    text_params, batch.get("tokens"), batch.get("mask"), draws.dropped
  )
  return stage.loss(params, draws, batch["image"], text, batch.get("lowres"))


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """min(decay, (1 + n) / (10 + n)): early on, the average is a short one.

  Ours: of averaged weights the paper does not speak.
  """
  n = step.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def by_logsnr(losses: jax.Array, logsnr: jax.Array) -> jax.Array:
  """Losses and logsnr [B] -> [2, buckets]: sums and counts by LOGSNR_EDGES."""
  bucket = (logsnr[:, None] >= jnp.array(LOGSNR_EDGES)).sum(1)
  one_hot = jax.nn.one_hot(bucket, len(LOGSNR_EDGES) + 1)
  losses = jnp.where(one_hot > 0, losses[:, None], 0.0)
  return jnp.stack([losses.sum(0), one_hot.sum(0)])


def split(rows: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B / parts, ...], part i of rows i, i + parts, ...

  So a device that has neighbouring rows has as many of each part.
  """
  return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)


def in_parts(loss_and_grad: Callable, parts: int) -> Callable:
  """loss_and_grad of a batch, computed in parts: ((loss, by_logsnr), grads)."""
  if parts == 1:
    return loss_and_grad

  def whole(params, text_params, draws, batch):
    def add(total, part):
      one = loss_and_grad(params, text_params, *part)
      return jax.tree.map(jnp.add, total, one), None

    buckets = jnp.zeros((2, len(LOGSNR_EDGES) + 1))
    nothing = (jnp.zeros(()), buckets), jax.tree.map(jnp.zeros_like, params)
    rows = jax.tree.map(lambda leaf: split(leaf, parts), (draws, batch))
    ((loss, buckets), grads), _ = jax.lax.scan(add, nothing, rows)
    grads = jax.tree.map(lambda leaf: leaf / parts, grads)
    return (loss / parts, buckets), grads

  return whole


def updated(
  state: TrainState,
  grads: Any,
  optimizer: optax.GradientTransformation,
  decay: float,
) -> tuple[TrainState, Any]:
  """(state, updates): params moved along grads, and ema after them."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  d = ema_decay(state.step, decay)
  ema = jax.tree.map(lambda e, p: d * e + (1 - d) * p, state.ema, params)
  return state.replace(params=params, ema=ema, opt_state=opt_state), updates


def make_train_step(
  stage: Stage,
  embedder: Embedder | Unconditional,
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
  to itself the compiler sums these into whole ones on every device. A step
  whose loss or gradient is not finite changes nothing but its number and the
  count of the skipped. metrics: scalars, and `logsnr` of by_logsnr.
  """

  def mean_loss(params, text_params, draws, batch):
    if shardings is not None:
      params = jax.lax.with_sharding_constraint(params, shardings)
    losses, logsnr = batch_loss(
      stage, embedder, params, text_params, draws, batch
    )
    return losses.mean(), by_logsnr(losses, logsnr)

  loss_and_grad = in_parts(
    jax.value_and_grad(mean_loss, has_aux=True), accumulate
  )

  def step(state, text_params, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    draws = stage.draw(key, len(batch["image"]))
    (loss, buckets), grads = loss_and_grad(
      state.params, text_params, draws, batch
    )
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    new, updates = updated(state, grads, optimizer, decay)
    new = jax.tree.map(partial(jnp.where, finite), new, state)
    new = new.replace(step=state.step + 1, skipped=state.skipped.after(finite))
    metrics = {
      "loss": loss,
      "grad_norm": grad_norm,
      "update_norm": optax.tree.norm(updates),
      "param_norm": optax.tree.norm(new.params),
      "ema_decay": ema_decay(state.step, decay),
      "skipped_steps": new.skipped.total,
      "skipped_in_a_row": new.skipped.in_a_row,
      "logsnr": buckets,
    }
    return new, metrics

  return step
