"""A stage: one resolution of the cascade, its training loss and its sampler."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.augment import augment
from imagen_jax.diffusion.gaussian import (
  EPS,
  Prediction,
  noise,
  q_sample,
  squared_error,
)
from imagen_jax.diffusion.guidance import guide
from imagen_jax.diffusion.samplers import (
  Carry,
  Denoised,
  advance,
  begin,
  fold_in,
)
from imagen_jax.diffusion.sampling import Sampling, SamplingArgs, time
from imagen_jax.diffusion.schedules import STEPS, CosineSchedule, Schedule
from imagen_jax.diffusion.variational import variational_bound
from imagen_jax.diffusion.weighting import Uniform, Weighting, independent_times
from imagen_jax.types import Conditioning, TextEmbedding

CHANNELS = 3


@flax.struct.dataclass
class Draws:
  """What is random in the loss of a batch, by example; all are [B].

  dropped: whether it loses its text. aug_level, and the key of that noise.
  time in [0, 1], and the key of eps. Drawn for the whole batch, it is the same
  however the batch is cut up.
  """

  dropped: jax.Array
  aug_level: jax.Array
  aug: jax.Array
  time: jax.Array
  eps: jax.Array


class SamplingInputs(NamedTuple):
  """What a batch of images is sampled from.

  keys [B]: one typed PRNG key per image.
  text: the prompts, one row per image; None for a net without text.
  lowres [B, h, w, 3] in [-1, 1]: the images to upsample; None for a base stage.
  """

  keys: jax.Array
  text: TextEmbedding | None
  lowres: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
  """A net with the schedule and the prediction it is trained for.

  size: the side of its pictures. lowres_size: that of the pictures it
  enlarges, None for a base stage. crop_size: the side of the windows it is
  trained on, None for whole pictures (Sec. 2.5, stage 3). max_aug_level: the
  augmentation level of the low-res picture is drawn from 0 to it (Sec. 2.4; in
  the paper it is 1, Fig. A.32). enlarge(lowres, (height, width)): what makes
  the low-res picture as large as the stage's before it is augmented; None
  leaves it small, for the net to enlarge (Fig. A.32). The loss is the squared
  error in loss_space: the paper's is eps, for every prediction (App. A). A net
  that predicts x is not to be trained so: next to no noise, the eps of a small
  error is huge, and nearly all the weight is there. weighting multiplies that
  error (Eq. 4): any but the uniform one makes the loss equal in every
  loss_space. times(key, batch) draws the times [batch] of a training batch.
  """

  net: nn.Module
  size: int
  schedule: Schedule = CosineSchedule()
  prediction: Prediction = EPS
  loss_space: Prediction = EPS
  weighting: Weighting = Uniform()
  times: Callable[[jax.Array, int], jax.Array] = independent_times
  lowres_size: int | None = None
  crop_size: int | None = None
  text_drop: float = 0.1
  max_aug_level: float = 1.0
  aug_schedule: Schedule = CosineSchedule()
  enlarge: Callable | None = None

  def __post_init__(self):
    for name in ("size", "crop_size", "lowres_size"):
      side = getattr(self, name)
      if side is not None and side < 1:
        raise ValueError(f"{name} is {side}, expected at least 1")
    for name in ("size", "crop_size"):
      side = getattr(self, name)
      if side is not None and side % self.net.stride:
        raise ValueError(
          f"{name} is {side}, expected a multiple of {self.net.stride}, the "
          "product of the net's strides"
        )
    if self.net.out_channels not in (CHANNELS, 2 * CHANNELS):
      raise ValueError(
        f"the net's out_channels is {self.net.out_channels}, expected "
        f"{CHANNELS}, or {2 * CHANNELS} with a learned variance"
      )
    if self.train_size > self.size:
      raise ValueError(
        f"crop_size is {self.crop_size}, expected at most size {self.size}"
      )
    for name in ("text_drop", "max_aug_level"):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, expected 0 to 1")
    if self.lowres_size is None:
      return
    if self.size % self.lowres_size or self.train_size % self.factor:
      raise ValueError(
        f"size {self.size} and crop_size {self.crop_size} must be multiples "
        f"of the enlargement from lowres_size {self.lowres_size}"
      )

  def check_sampling(self, sampling: Sampling) -> None:
    """ValueError for what the stage is not trained for.

    That is more augmentation, or a learned variance where the net has none.
    """
    if sampling.step.needs_gamma and not self.learns_variance:
      raise ValueError(
        "sampling is with the learned variance, expected a net with "
        f"out_channels {2 * CHANNELS}, not {CHANNELS}"
      )
    if sampling.aug_level > self.max_aug_level:
      raise ValueError(
        f"sampling has aug_level {sampling.aug_level}, expected at most "
        f"max_aug_level {self.max_aug_level}, what the stage is trained with"
      )

  @property
  def learns_variance(self) -> bool:
    """Whether the net predicts, besides its prediction, a v of its variance."""
    return self.net.out_channels == 2 * CHANNELS

  @property
  def factor(self) -> int:
    """How many times the low-res picture is enlarged; 1 for a base stage."""
    return self.size // (self.lowres_size or self.size)

  @property
  def train_size(self) -> int:
    """The side of the pictures in a training batch."""
    return self.crop_size or self.size

  def init(
    self, key: jax.Array, *, text_length: int | None, text_dim: int | None
  ) -> Any:
    """Returns the net's initial parameters.

    They are for text [B, text_length, text_dim], or for none where both are
    None.
    """
    side = self.net.stride * self.factor
    z = jnp.zeros((1, side, side, CHANNELS))
    text = None
    if text_length is not None:
      text = TextEmbedding(
        jnp.zeros((1, text_length, text_dim)), jnp.ones((1, text_length), bool)
      )
    lowres = None
    if self.lowres_size:
      small = side // self.factor
      lowres = jnp.zeros((1, small, small, CHANNELS))
    aug_level = None if lowres is None else jnp.zeros(1)
    cond = Conditioning(text, lowres, aug_level)
    return self.net.init(key, z, jnp.zeros(1), cond)["params"]

  def time(self, logsnr: jax.Array) -> jax.Array:
    """Returns the net's noise input in [0, 1000]: the time of logsnr.

    It is rounded to 1/1024. That hides the error of inverting a schedule in
    float32, which is smaller, so that a table's steps are whole numbers.
    """
    return jnp.round(STEPS * 1024 * self.schedule.inverse(logsnr)) / 1024

  def condition(
    self,
    keys: jax.Array,
    text: TextEmbedding | None,
    lowres: jax.Array | None,
    aug_level: jax.Array,
  ) -> Conditioning:
    """The conditioning, its low-res picture augmented at aug_level [B]."""
    if self.lowres_size is None:
      return Conditioning(text)
    assert lowres is not None, "a super-resolution stage needs lowres"
    if self.enlarge is not None:
      _, height, width, _ = lowres.shape
      shape = (height * self.factor, width * self.factor)
      lowres = self.enlarge(lowres, shape)
    noised = augment(keys, lowres, aug_level, self.aug_schedule)
    return Conditioning(text, noised, aug_level)

  def draw(self, key: jax.Array, batch: int) -> Draws:
    """The randomness of a training batch (App. A; Fig. A.32)."""
    names = ("drop", "aug_level", "aug", "time", "eps")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    return Draws(
      dropped=jax.random.bernoulli(keys["drop"], self.text_drop, (batch,)),
      aug_level=self.aug_schedule.from_uniform(
        jax.random.uniform(
          keys["aug_level"], (batch,), maxval=self.max_aug_level
        )
      ),
      aug=jax.random.split(keys["aug"], batch),
      time=self.schedule.from_uniform(self.times(keys["time"], batch)),
      eps=jax.random.split(keys["eps"], batch),
    )

  def loss(
    self,
    params: Any,
    draws: Draws,
    x: jax.Array,
    text: TextEmbedding | None,
    lowres: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Loss and logsnr, both [B], of pictures x [B, H, W, 3] (Eq. 4, App. A).

    A net that learns its variance has the variational bound on top.
    """
    text = None if text is None else text.drop(draws.dropped)
    cond = self.condition(draws.aug, text, lowres, draws.aug_level)
    logsnr = self.schedule(draws.time)
    eps = noise(draws.eps, x.shape[1:])
    z_t = q_sample(x, eps, logsnr)
    time = self.time(logsnr)
    out = self.net.apply({"params": params}, z_t, time, cond)
    out, v = self.parts(out)
    space = self.loss_space
    loss = squared_error(self.prediction, out, x, eps, logsnr, space)
    loss *= self.weighting(logsnr, space=space, schedule=self.schedule)
    if v is not None:
      # The bound teaches v alone: the picture is the squared error's to teach.
      x_hat = self.prediction.to_x(jax.lax.stop_gradient(out), z_t, logsnr)
      loss += variational_bound(
        x, z_t, x_hat, (v + 1) / 2, time=time, schedule=self.schedule
      )
    return loss, logsnr

  def denoiser(
    self, params: Any, cond: Conditioning, sampling: SamplingArgs
  ) -> Callable[[jax.Array, jax.Array], Denoised]:
    """Returns denoise(z [B, H, W, 3], logsnr [B]) -> Denoised.

    Guidance and threshold are of x_hat; the variance is that with the text.
    """
    guided = sampling.guidance is not None
    assert not (guided and cond.text is None), "guidance needs a text"
    if guided:  # one doubled batch: with the text, and with the null text
      null = cond.replace(text=cond.text.nothing())
      cond = jax.tree.map(lambda *c: jnp.concatenate(c), cond, null)
    variables = {"params": params, **self.read_text(params, cond)}

    def denoise(z: jax.Array, logsnr: jax.Array) -> Denoised:
      batch = z.shape[0]
      if guided:
        z, logsnr = jnp.concatenate([z, z]), jnp.concatenate([logsnr, logsnr])
      out = self.net.apply(variables, z, self.time(logsnr), cond)
      out, v = self.parts(out)
      x_hat = self.prediction.to_x(out, z, logsnr)
      if guided:
        x_hat = guide(*jnp.split(x_hat, 2), sampling.guidance)
      gamma = None if v is None else (v[:batch] + 1) / 2
      return Denoised(sampling.threshold(x_hat), gamma)

    return denoise

  def parts(self, out: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The net's output as prediction and v, both [B, H, W, 3]; v or None."""
    if not self.learns_variance:
      return out, None
    return tuple(jnp.split(out, 2, axis=-1))

  def read_text(self, params: Any, cond: Conditioning) -> dict[str, Any]:
    """What the net computes from the text alone, for every step to reuse."""
    if cond.text is None:
      return {}
    side = self.net.stride * self.factor
    z = jnp.zeros((cond.text.mask.shape[0], side, side, CHANNELS))
    _, kept = self.net.apply(
      {"params": params}, z, jnp.zeros(z.shape[0]), cond, mutable=["text"]
    )
    return kept

  def blank(self, batch: int) -> Carry:
    """Returns what to start `run` with at step 0: zeros, to be drawn there."""
    # A batch of jax.export's may be a symbol, of which numpy knows nothing.
    zeros = np.zeros if isinstance(batch, int) else jnp.zeros
    z = zeros((batch, self.size, self.size, CHANNELS), np.float32)
    return Carry(z, z, zeros(batch, np.float32))

  def run(
    self,
    params: Any,
    carry: Carry,
    first: int | jax.Array,
    last: int | jax.Array,
    inputs: SamplingInputs,
    sampling: SamplingArgs,
  ) -> Carry:
    """Does the sampling steps first, ..., last - 1 (App. A).

    All steps at once and any parts one after the other give the same bits.
    After the last step carry.z is the images [B, size, size, 3] in [-1, 1].
    carry.x_hat is each step's x_hat, after guidance and threshold.
    """
    # 1. Augment the low-resolution image (Fig. A.32).
    aug_level = jnp.full(inputs.keys.shape, sampling.aug_level)
    cond = self.condition(
      fold_in(inputs.keys, 0), inputs.text, inputs.lowres, aug_level
    )
    # 2. Draw z_1, if this is the beginning.
    keys = fold_in(inputs.keys, 1)
    start = begin(keys, carry.z.shape[1:])
    carry = jax.tree.map(
      lambda new, old: jnp.where(first == 0, new, old), start, carry
    )
    # 3. Step from noise to image.
    carry = advance(
      carry,
      first,
      last,
      keys=keys,
      denoise=self.denoiser(params, cond, sampling),
      logsnr=lambda i: self.schedule(time(i, sampling, self.schedule)),
      steps=sampling.steps,
      sampler=sampling.step,
    )
    # 4. Clip the finished image.
    image = jnp.clip(carry.z, -1.0, 1.0)
    done = jnp.equal(last, sampling.steps)
    return carry._replace(z=jnp.where(done, image, carry.z))

  def sample(
    self,
    params: Any,
    keys: jax.Array,
    text: TextEmbedding | None,
    lowres: jax.Array | None = None,
    *,
    sampling: Sampling,
  ) -> jax.Array:
    """Returns images [B, size, size, 3] in [-1, 1], one key per image."""
    carry = run_stage(
      self,
      params,
      self.blank(keys.shape[0]),
      0,
      sampling.num_steps,
      SamplingInputs(keys, text, lowres),
      sampling.args(),
    )
    return carry.z


@functools.partial(
  jax.jit, static_argnames=("stage", "rows"), donate_argnames="carry"
)
def run_stage(
  stage: Stage,
  params: Any,
  carry: Carry,
  first: int | jax.Array,
  last: int | jax.Array,
  inputs: SamplingInputs,
  sampling: SamplingArgs,
  *,
  rows: jax.sharding.Sharding | None = None,
) -> Carry:
  """Runs stage.run, compiled once for every number of steps and every value.

  rows: where the carry's rows lie; None leaves it to the compiler. The carry
  that is given is used up.
  """
  carry = stage.run(params, carry, first, last, inputs, sampling)
  if rows is None:
    return carry
  return jax.lax.with_sharding_constraint(carry, rows)
