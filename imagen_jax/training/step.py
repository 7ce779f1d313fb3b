"""The training step: a pure function of state, text weights and batch."""

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
from imagen_jax.text.encoder import Embedder, Stored, Unconditional
from imagen_jax.types import TextEmbedding

Batch = dict[str, jax.Array]
# Bounds of the log-SNR buckets: below the first, ..., from the last on.
LOGSNR_EDGES = (-10.0, -5.0, 0.0, 5.0, 10.0)


@flax.struct.dataclass
class Skipped:
  """Counts steps that were skipped because they were not finite.

  Attributes:
    total: int32 [], all of the run.
    in_a_row: int32 [], up to the newest step.
  """

  total: jax.Array
  in_a_row: jax.Array

  def after(self, finite: jax.Array) -> "Skipped":
    """Returns the counts after a step that was or was not finite."""
    return Skipped(
      self.total + ~finite, jnp.where(finite, 0, self.in_a_row + 1)
    )


@flax.struct.dataclass
class TrainState:
  """Holds everything that a step changes.

  It holds no random key: a step's key is fold_in(seed, step), so that a resumed
  run repeats an uninterrupted one.

  Attributes:
    step: int32 [], the number of steps so far.
    params: the net's weights.
    ema: their exponential moving average.
    opt_state: the optimizer's state.
    skipped: the counts of skipped steps.
  """

  step: jax.Array
  params: Any
  ema: Any
  opt_state: Any
  skipped: Skipped


def init_state(
  params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """Makes the state before the first step; ema starts as a copy of params."""
  ema = jax.tree.map(jnp.copy, params)
  zero = lambda: jnp.zeros((), jnp.int32)
  skipped = Skipped(zero(), zero())
  return TrainState(zero(), params, ema, optimizer.init(params), skipped)


def place_state(
  state: TrainState,
  optimizer: optax.GradientTransformation,
  placement: Placement,
) -> TrainState:
  """Returns the shardings of a state, given its shapes.

  A parameter, its average and its optimizer state share one sharding.
  """
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


def encode_text(
  embedder: Embedder | Stored | Unconditional,
  text_params: Any,
  batch: Batch,
  dropped: jax.Array,
) -> TextEmbedding | None:
  """Encodes a batch's captions by the frozen encoder (Sec. 2.1).

  Their stored embeddings are used as they are.

  Args:
    embedder: the text encoder without its weights.
    text_params: the text encoder's weights.
    batch: tokens and mask [B, L], or stored tokens [B, L, D]; none of them if
      the net is unconditional.
    dropped: bool [B], True for examples that lose their captions.

  Returns:
    The embeddings; None if the net is unconditional.
  """
  tokens, mask = batch.get("tokens"), batch.get("mask")
  return embedder.for_training(text_params, tokens, mask, dropped)


def batch_loss(
  stage: Stage,
  params: Any,
  draws: Draws,
  batch: Batch,
  text: TextEmbedding | None,
) -> tuple[jax.Array, jax.Array]:
  """Computes the loss of each example of a batch.

  Args:
    stage: the stage that is trained.
    params: the net's weights.
    draws: the random numbers of the step.
    batch: image [B, H, W, 3]; lowres [B, h, w, 3] for a super-resolution stage.
    text: the embeddings of the captions, from encode_text.

  Returns:
    The losses [B] and the log-SNRs [B].
  """
  return stage.loss(params, draws, batch["image"], text, batch.get("lowres"))


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
  """Returns min(decay, (1 + n) / (10 + n)), so that early averages are short.

  Not in the paper, which does not mention weight averaging. Diffusion models
  have used it since DDPM (arXiv 2006.11239).
  """
  n = step.astype(jnp.float32)
  return jnp.minimum(decay, (1.0 + n) / (10.0 + n))


def by_logsnr(losses: jax.Array, logsnr: jax.Array) -> jax.Array:
  """Sums losses [B] by logsnr [B], in buckets bounded by LOGSNR_EDGES.

  Returns:
    [2, buckets]: the sums and the counts.
  """
  bucket = (logsnr[:, None] >= jnp.array(LOGSNR_EDGES)).sum(1)
  one_hot = jax.nn.one_hot(bucket, len(LOGSNR_EDGES) + 1)
  losses = jnp.where(one_hot > 0, losses[:, None], 0.0)
  return jnp.stack([losses.sum(0), one_hot.sum(0)])


def split(rows: jax.Array, parts: int) -> jax.Array:
  """Splits [B, ...] into [parts, B / parts, ...].

  Part i has rows i, i + parts, ... A device that holds neighbouring rows
  therefore has equally many rows of each part.
  """
  return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)


def in_parts(loss_and_grad: Callable, parts: int) -> Callable:
  """Wraps loss_and_grad so that it computes a batch in equal parts.

  Args:
    loss_and_grad: (params, draws, batch, text) -> ((loss, by_logsnr), grads).
    parts: how many parts are computed one after another.
  """
  if parts == 1:
    return loss_and_grad

  def whole(params, draws, batch, text):
    def add(total, part):
      one = loss_and_grad(params, *part)
      return jax.tree.map(jnp.add, total, one), None

    buckets = jnp.zeros((2, len(LOGSNR_EDGES) + 1))
    nothing = (jnp.zeros(()), buckets), jax.tree.map(jnp.zeros_like, params)
    rows = jax.tree.map(lambda leaf: split(leaf, parts), (draws, batch, text))
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
  """Moves params along grads, and ema after params.

  Returns:
    (state, updates): the new state, and the updates added to params.
  """
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  d = ema_decay(state.step, decay)
  ema = jax.tree.map(lambda e, p: d * e + (1 - d) * p, state.ema, params)
  return state.replace(params=params, ema=ema, opt_state=opt_state), updates


def make_train_step(
  stage: Stage,
  embedder: Embedder | Stored | Unconditional,
  optimizer: optax.GradientTransformation,
  *,
  decay: float,
  seed: int,
  accumulate: int = 1,
  shardings: Any = None,
) -> Callable[
  [TrainState, Any, Batch], tuple[TrainState, dict[str, jax.Array]]
]:
  """Makes the function step(state, text_params, batch) -> (state, metrics).

  The text encoder is frozen (Sec. 2.1). Not in the paper: a step is skipped if
  its loss or gradient is not finite, so that one bad batch cannot spoil a run.
  A skipped step changes only the step number and the counts of skipped steps.

  Args:
    stage: the stage to train.
    embedder: the text encoder without its weights.
    optimizer: updates the net's weights.
    decay: the largest decay of the averaged weights, 0 to 1.
    seed: the seed of all steps' random numbers.
    accumulate: the number of parts of a batch, computed one after another, that
      give one gradient.
    shardings: the shardings of the parameters, applied to their gradients too.
      Without them the compiler sums each gradient into a replicated one.

  Returns:
    The step. Its metrics are scalars, and `logsnr` from by_logsnr.
  """

  def mean_loss(params, draws, batch, text):
    if shardings is not None:
      params = jax.lax.with_sharding_constraint(params, shardings)
    losses, logsnr = batch_loss(stage, params, draws, batch, text)
    return losses.mean(), by_logsnr(losses, logsnr)

  loss_and_grad = in_parts(
    jax.value_and_grad(mean_loss, has_aux=True), accumulate
  )

  def step(state, text_params, batch):
    # 1. Draw times, noise and dropped prompts from the seed and the step.
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    draws = stage.draw(key, len(batch["image"]))
    # 2. Encode the captions, all parts at once: the encoder's weights are then
    #    gathered once in a step.
    text = encode_text(embedder, text_params, batch, draws.dropped)
    # 3. Compute the loss and its gradient.
    (loss, buckets), grads = loss_and_grad(state.params, draws, batch, text)
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    # 4. Update the weights and their average.
    new, updates = updated(state, grads, optimizer, decay)
    # 5. Keep the old state if the step is not finite.
    new = jax.tree.map(partial(jnp.where, finite), new, state)
    new = new.replace(step=state.step + 1, skipped=state.skipped.after(finite))
    # 6. Report the metrics.
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
