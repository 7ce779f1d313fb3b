"""A stage: one resolution of the cascade, its training loss and its sampler."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from imagen_jax.diffusion.augment import augment
from imagen_jax.diffusion.gaussian import (
  EPS,
  Prediction,
  noise,
  q_sample,
  squared_error,
)
from imagen_jax.diffusion.guidance import DynamicThreshold, guide
from imagen_jax.diffusion.samplers import AncestralStep, fold_in, sample
from imagen_jax.diffusion.schedules import CosineSchedule, Schedule
from imagen_jax.types import Conditioning, TextEmbedding

CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to sample from a stage; hashable, so that it is static under jit.

  guidance w is the paper's: 1 is none. step(keys, z_t, x_hat, *, logsnr_t,
  logsnr_s) -> z_s is a sampler, threshold(x_hat) -> x_hat acts after guidance.
  aug_level in [0, 1] is the noise given to the low-res picture. The numbers
  are ours where the paper is silent (steps, gamma).
  """

  steps: int = 256
  guidance: float = 5.0
  step: Callable = AncestralStep()
  threshold: Callable = DynamicThreshold()
  aug_level: float = 0.0

  def __post_init__(self):
    if self.steps < 1:
      raise ValueError(f"steps is {self.steps}, expected at least 1")
    if not math.isfinite(self.guidance):
      raise ValueError(f"guidance is {self.guidance}, expected a number")
    if not 0 <= self.aug_level <= 1:
      raise ValueError(f"aug_level is {self.aug_level}, expected 0 to 1")


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


@dataclasses.dataclass(frozen=True)
class Stage:
  """A net with the schedule and the prediction it is trained for.

  size: the side of its pictures. lowres_size: that of the pictures it
  enlarges, None for a base stage. crop_size: the side of the windows it is
  trained on, None for whole pictures (Sec. 2.5, stage 3). max_aug_level: the
  augmentation level of the low-res picture is drawn from 0 to it (Sec. 2.4; in
  the paper it is 1, Fig. A.32). The loss is the squared error in loss_space,
  weighted uniformly: the paper's is eps, for every prediction (App. A). A net
  that predicts x is not to be trained so: next to no noise, the eps of a small
  error is huge, and nearly all the weight is there.
  """

  net: nn.Module
  size: int
  schedule: Schedule = CosineSchedule()
  prediction: Prediction = EPS
  loss_space: Prediction = EPS
  lowres_size: int | None = None
  crop_size: int | None = None
  text_drop: float = 0.1
  max_aug_level: float = 1.0
  aug_schedule: Schedule = CosineSchedule()

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
    """ValueError for more augmentation than the stage is trained with."""
    if sampling.aug_level > self.max_aug_level:
      raise ValueError(
        f"sampling has aug_level {sampling.aug_level}, expected at most "
        f"max_aug_level {self.max_aug_level}, what the stage is trained with"
      )

  @property
  def factor(self) -> int:
    """How many times the low-res picture is enlarged; 1 for a base stage."""
    return self.size // (self.lowres_size or self.size)

  @property
  def train_size(self) -> int:
    """The side of the pictures in a training batch."""
    return self.crop_size or self.size

  def init(self, key: jax.Array, *, text_length: int, text_dim: int) -> Any:
    """The net's initial parameters, for text [B, text_length, text_dim]."""
    side = self.net.stride * self.factor
    z = jnp.zeros((1, side, side, CHANNELS))
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
    """The net's noise input in [0, 1000]: the schedule's time of logsnr."""
    return 1000.0 * self.schedule.inverse(logsnr)

  def condition(
    self,
    keys: jax.Array,
    text: TextEmbedding,
    lowres: jax.Array | None,
    aug_level: jax.Array,
  ) -> Conditioning:
    """The conditioning, its low-res picture augmented at aug_level [B]."""
    if self.lowres_size is None:
      return Conditioning(text)
    assert lowres is not None, "a super-resolution stage needs lowres"
    noised = augment(keys, lowres, aug_level, self.aug_schedule)
    return Conditioning(text, noised, aug_level)

  def draw(self, key: jax.Array, batch: int) -> Draws:
    """The randomness of a training batch (App. A; Fig. A.32)."""
    names = ("drop", "aug_level", "aug", "time", "eps")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    return Draws(
      dropped=jax.random.bernoulli(keys["drop"], self.text_drop, (batch,)),
      aug_level=jax.random.uniform(
        keys["aug_level"], (batch,), maxval=self.max_aug_level
      ),
      aug=jax.random.split(keys["aug"], batch),
      time=jax.random.uniform(keys["time"], (batch,)),
      eps=jax.random.split(keys["eps"], batch),
    )

  def loss(
    self,
    params: Any,
    draws: Draws,
    x: jax.Array,
    text: TextEmbedding,
    lowres: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Loss and logsnr, both [B], of pictures x [B, H, W, 3] (Eq. 4, App. A)."""
    text = text.drop(draws.dropped)
    cond = self.condition(draws.aug, text, lowres, draws.aug_level)
    logsnr = self.schedule(draws.time)
    eps = noise(draws.eps, x.shape[1:])
    z_t = q_sample(x, eps, logsnr)
    out = self.net.apply({"params": params}, z_t, self.time(logsnr), cond)
    loss = squared_error(self.prediction, out, x, eps, logsnr, self.loss_space)
    return loss, logsnr

  def denoiser(
    self, params: Any, cond: Conditioning, sampling: Sampling
  ) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """denoise(z [B, H, W, 3], logsnr [B]) -> x_hat, guided and thresholded."""
    guided = sampling.guidance != 1.0
    if guided:  # one doubled batch: with the text, and with the null text
      null = cond.replace(text=cond.text.nothing())
      cond = jax.tree.map(lambda *c: jnp.concatenate(c), cond, null)
    variables = {"params": params, **self.read_text(params, cond)}

    def denoise(z: jax.Array, logsnr: jax.Array) -> jax.Array:
      if guided:
        z, logsnr = jnp.concatenate([z, z]), jnp.concatenate([logsnr, logsnr])
      out = self.net.apply(variables, z, self.time(logsnr), cond)
      x_hat = self.prediction.to_x(out, z, logsnr)
      if guided:
        x_hat = guide(*jnp.split(x_hat, 2), sampling.guidance)
      return sampling.threshold(x_hat)

    return denoise

  def read_text(self, params: Any, cond: Conditioning) -> dict[str, Any]:
    """What the net computes from the text alone, for every step to reuse."""
    side = self.net.stride * self.factor
    z = jnp.zeros((cond.text.mask.shape[0], side, side, CHANNELS))
    _, kept = self.net.apply(
      {"params": params}, z, jnp.zeros(z.shape[0]), cond, mutable=["text"]
    )
    return kept

  def sample(
    self,
    params: Any,
    keys: jax.Array,
    text: TextEmbedding,
    lowres: jax.Array | None,
    *,
    sampling: Sampling,
  ) -> jax.Array:
    """Pictures [B, size, size, 3] in [-1, 1], one key per picture."""
    aug_level = jnp.full(keys.shape, sampling.aug_level)
    cond = self.condition(fold_in(keys, 0), text, lowres, aug_level)
    shape = (self.size, self.size, CHANNELS)
    x = sample(
      fold_in(keys, 1),
      self.denoiser(params, cond, sampling),
      shape,
      schedule=self.schedule,
      steps=sampling.steps,
      step=sampling.step,
    )
    return jnp.clip(x, -1.0, 1.0)


sample_stage = jax.jit(Stage.sample, static_argnames=("self", "sampling"))
