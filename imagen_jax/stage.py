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
from imagen_jax.diffusion.samplers import (
  Carry,
  Denoised,
  advance,
  begin,
  fold_in,
)
from imagen_jax.diffusion.sampling import Sampling, SamplingArgs, guided, time
from imagen_jax.diffusion.schedules import STEPS, CosineSchedule, Schedule
from imagen_jax.diffusion.variational import variational_bound
from imagen_jax.diffusion.weighting import Uniform, Weighting, independent_times
from imagen_jax.parallel import compiler
from imagen_jax.types import Conditioning, TextEmbedding

CHANNELS = 3


@flax.struct.dataclass
class Draws:
  """Holds the random draws of a training batch, one row per example.

  All examples are drawn at once. The draws do not depend on how the batch is
  split afterwards.

  Attributes:
    dropped: bool [B], True where the example loses its text.
    aug_level: float [B] in [0, 1], the augmentation level of the low-resolution
      image.
    aug_keys: PRNG keys [B], of the augmentation's noise.
    time: float [B] in [0, 1], the diffusion time t.
    eps_keys: PRNG keys [B], of the noise eps in z_t.
  """

  dropped: jax.Array
  aug_level: jax.Array
  aug_keys: jax.Array
  time: jax.Array
  eps_keys: jax.Array


class SamplingInputs(NamedTuple):
  """Holds the inputs from which a batch of images is sampled.

  Attributes:
    keys: typed PRNG keys [B], one per image.
    text: the prompts, one row per image; None for a net without text.
    lowres: float [B, h, w, 3] in [-1, 1], the images to upsample; None for a
      base stage.
  """

  keys: jax.Array
  text: TextEmbedding | None
  lowres: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
  """Describes one stage: a net, the diffusion it is trained for and its sizes.

  Attributes:
    net: the U-Net, with 3 output channels, or 6 with a learned variance.
    size: resolution of the images, in pixels.
    schedule: the noise schedule, a map of time to log-SNR.
    prediction: the quantity that the net predicts: eps, x or v.
    loss_space: the quantity whose squared error is the loss. The paper uses eps
      for every prediction (App. A). Choose x for a net that predicts x: at low
      noise a small error of x is a huge error of eps, so the eps loss puts
      nearly all its weight there.
    weighting: multiplies the squared error (Eq. 4). Every weighting but the
      uniform one gives the same loss in every loss_space.
    times: called as times(key, batch), draws the uniform numbers [batch] that
      the schedule turns into the times of a training batch.
    lowres_size: resolution of the images to upsample, in pixels; None for a
      base stage.
    crop_size: size of the training crops, in pixels; None trains on full images
      (stage 3 trains on crops, Sec. 2.5).
    text_drop: probability of training on the null text (10 % in Sec. 4.1).
    max_aug_level: the largest augmentation level drawn in training; 1 in the
      paper (Sec. 2.4, Fig. A.32).
    aug_schedule: the noise schedule of the augmentation level.
    upsample: called as `upsample(lowres, (height, width))`, upsamples the
      low-resolution image before its augmentation. None leaves upsampling to
      the net, after the augmentation (Fig. A.32).
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
  upsample: Callable | None = None

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
    if (low := self.lowres_size) is None:
      return
    if self.size % low:
      raise ValueError(
        f"size is {self.size}, expected a multiple of lowres_size, {low}"
      )
    if self.train_size % self.factor:
      raise ValueError(
        f"crop_size is {self.crop_size}, expected a multiple of the "
        f"upsampling factor, {self.factor}"
      )

  def check_sampling(self, sampling: Sampling) -> None:
    """Checks sampling settings against the settings of training.

    Raises:
      ValueError: if the sampler needs a learned variance that the net lacks, or
        if aug_level is above max_aug_level.
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
    """True if the net predicts its variance too, as a second output v."""
    return self.net.out_channels == 2 * CHANNELS

  @property
  def factor(self) -> int:
    """The upsampling factor from lowres_size to size; 1 for a base stage."""
    return self.size // (self.lowres_size or self.size)

  @property
  def train_size(self) -> int:
    """The size of the images in a training batch, in pixels."""
    return self.crop_size or self.size

  def init(
    self, key: jax.Array, *, text_length: int | None, text_dim: int | None
  ) -> Any:
    """Returns the net's initial parameters.

    They fit text [B, text_length, text_dim]; both are None for a net without
    text.
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
    """Returns the net's time input [B] in [0, 1000] for log-SNR [B].

    The time is rounded to 1/1024, which is coarser than the float32 error of
    the schedule's inverse. The steps of a discrete schedule are thus integers.
    """
    return jnp.round(STEPS * 1024 * self.schedule.inverse(logsnr)) / 1024

  def condition(
    self,
    keys: jax.Array,
    text: TextEmbedding | None,
    lowres: jax.Array | None,
    aug_level: jax.Array,
  ) -> Conditioning:
    """Returns the conditioning, with lowres [B, h, w, 3] augmented.

    The noise at aug_level [B] comes from keys [B]. A base stage ignores lowres.
    """
    if self.lowres_size is None:
      return Conditioning(text)
    assert lowres is not None, "a super-resolution stage needs lowres"
    if self.upsample is not None:
      shape = tuple(side * self.factor for side in lowres.shape[1:3])
      lowres = self.upsample(lowres, shape)
    noised = augment(keys, lowres, aug_level, self.aug_schedule)
    return Conditioning(text, noised, aug_level)

  def draw(self, key: jax.Array, batch: int) -> Draws:
    """Draws the randomness of a training batch (App. A, Fig. A.32)."""
    names = ("drop", "aug_level", "aug", "time", "eps")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    return Draws(
      dropped=jax.random.bernoulli(keys["drop"], self.text_drop, (batch,)),
      aug_level=self.aug_schedule.from_uniform(
        jax.random.uniform(
          keys["aug_level"], (batch,), maxval=self.max_aug_level
        )
      ),
      aug_keys=jax.random.split(keys["aug"], batch),
      time=self.schedule.from_uniform(self.times(keys["time"], batch)),
      eps_keys=jax.random.split(keys["eps"], batch),
    )

  def loss(
    self,
    params: Any,
    draws: Draws,
    x: jax.Array,
    text: TextEmbedding | None,
    lowres: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Computes the loss [B] and log-SNR [B] of images (Eq. 4, App. A).

    Args:
      params: the net's parameters.
      draws: the randomness of the batch, from draw().
      x: float [B, H, W, 3] in [-1, 1], the images.
      text: the prompts; None for a net without text.
      lowres: float [B, h, w, 3] in [-1, 1]; None for a base stage.
    """
    # 1. Replace the dropped prompts by the null text (Sec. 4.1).
    text = None if text is None else text.drop(draws.dropped)
    # 2. Augment the low-resolution image (Sec. 2.4, Fig. A.32).
    cond = self.condition(draws.aug_keys, text, lowres, draws.aug_level)
    # 3. Add noise to the image: z_t = alpha_t x + sigma_t eps (Eq. 3).
    logsnr = self.schedule(draws.time)
    eps = noise(draws.eps_keys, x.shape[1:])
    z_t = q_sample(x, eps, logsnr)
    # 4. Predict eps, x or v from z_t.
    time = self.time(logsnr)
    out = self.net.apply({"params": params}, z_t, time, cond)
    out, v = self.split_variance(out)
    # 5. Weigh the squared error (Eq. 4).
    space = self.loss_space
    loss = squared_error(self.prediction, out, x, eps, logsnr, space)
    loss *= self.weighting(logsnr, space=space, schedule=self.schedule)
    if v is not None:
      # 6. Add the variational bound of a learned variance. It trains v alone:
      # no gradient flows through x_hat.
      x_hat = self.prediction.to_x(jax.lax.stop_gradient(out), z_t, logsnr)
      loss += variational_bound(
        x, z_t, x_hat, (v + 1) / 2, time=time, schedule=self.schedule
      )
    return loss, logsnr

  def denoiser(
    self, params: Any, cond: Conditioning, sampling: SamplingArgs
  ) -> Callable[[jax.Array, jax.Array], Denoised]:
    """Returns denoise(z [B, H, W, 3], logsnr [B]) -> Denoised.

    Guidance and threshold act on x_hat. A learned variance is the one predicted
    with the prompt.
    """

    def predictor(cond: Conditioning) -> Callable:
      variables = {"params": params, **self.read_text(params, cond)}

      def predict(z: jax.Array, logsnr: jax.Array):
        output = self.net.apply(variables, z, self.time(logsnr), cond)
        out, v = self.split_variance(output)
        return self.prediction.to_x(out, z, logsnr), v

      return predict

    guides = sampling.guidance is not None
    alone = not guides or sampling.guidance_interval is not None
    predict = predictor(cond) if alone else None
    if guides:
      assert cond.text is not None, "guidance needs a text"
      null = cond.replace(text=cond.text.null_text())
      both = jax.tree.map(lambda *c: jnp.concatenate(c), cond, null)
      predict = guided(predictor(both), predict, sampling)

    def denoise(z: jax.Array, logsnr: jax.Array) -> Denoised:
      x_hat, v = predict(z, logsnr)
      gamma = None if v is None else (v + 1) / 2
      return Denoised(sampling.threshold(x_hat), gamma)

    return denoise

  def split_variance(
    self, out: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    """Splits the net's output into prediction and v, both [B, H, W, 3].

    v is None for a net that does not learn its variance.
    """
    if not self.learns_variance:
      return out, None
    return tuple(jnp.split(out, 2, axis=-1))

  def read_text(self, params: Any, cond: Conditioning) -> dict[str, Any]:
    """Computes all values that depend on the text alone, once for all steps."""
    if cond.text is None:
      return {}
    side = self.net.stride * self.factor
    z = jnp.zeros((cond.text.mask.shape[0], side, side, CHANNELS))
    _, kept = self.net.apply(
      {"params": params}, z, jnp.zeros(z.shape[0]), cond, mutable=["text"]
    )
    return kept

  def blank(self, batch: int) -> Carry:
    """Returns the carry of zeros that `run` takes at step 0."""
    # jax.export may pass a symbolic batch size, which numpy cannot take.
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
    """Runs the sampling steps first, ..., last - 1 (App. A).

    One call and several calls give bit-identical images.

    Args:
      params: the net's parameters.
      carry: the state before step first; blank() for step 0.
      first: the first step to run.
      last: the step to stop before, at most sampling.steps.
      inputs: the images' keys, text and low-resolution images.
      sampling: the settings.

    Returns:
      The state, with x_hat of step last - 1 after guidance and threshold. After
      the final step z holds the images [B, size, size, 3] in [-1, 1].
    """
    # 1. Augment the low-resolution image (Fig. A.32).
    aug_level = jnp.full(inputs.keys.shape, sampling.aug_level)
    cond = self.condition(
      fold_in(inputs.keys, 0), inputs.text, inputs.lowres, aug_level
    )
    # 2. Draw z_1 ~ N(0, I), if the first step is step 0.
    keys = fold_in(inputs.keys, 1)
    start = begin(keys, carry.z.shape[1:])
    carry = jax.tree.map(
      lambda new, old: jnp.where(first == 0, new, old), start, carry
    )
    # 3. Step from z_t to z_s: denoise, guide, threshold, sample (App. A).
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
    # 4. Clip the finished image to [-1, 1].
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
    """Samples images [B, size, size, 3] in [-1, 1], one per key."""
    return run_stage(
      self, params, self.blank(keys.shape[0]), 0, sampling.num_steps,
      SamplingInputs(keys, text, lowres), sampling.args(),
    ).z  # fmt: skip


@functools.partial(
  compiler.jit, static_argnames=("stage", "rows"), donate_argnames="carry"
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
  rows: jax.sharding.Sharding | Carry | None = None,
) -> Carry:
  """Runs stage.run as a jitted function.

  It compiles once for all numbers of steps and all values of the settings. The
  given carry is donated: do not use it afterwards. `rows` is the sharding of
  the returned carry, one for all of it or a Carry of shardings; None leaves it
  to the compiler.
  """
  carry = stage.run(params, carry, first, last, inputs, sampling)
  if rows is None:
    return carry
  return jax.lax.with_sharding_constraint(carry, rows)
