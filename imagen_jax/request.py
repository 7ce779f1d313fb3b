"""Requests: images to sample, checked before any work is done."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from PIL import Image

from imagen_jax.cascade import Cascade
from imagen_jax.data import images
from imagen_jax.files import expand
from imagen_jax.stage import Sampling
from imagen_jax.text.tokenizer import check_prompts
from imagen_jax.types import TextEmbedding

PerStage = float | int | None | Sequence | Mapping[str, Any]
Picture = Image.Image | np.ndarray | str | os.PathLike
Callback = Callable[[str, int, np.ndarray], None]
SEEDS = 2**32
PACE = 1.0  # seconds between two updates of the progress


class Row(NamedTuple):
  """Describes one image to sample; its key is fold_in(key(seed), index).

  Attributes:
    prompt: the number of its prompt, from 0.
    seed: 0 to 2**32 - 1.
    index: the image's number in its seed's sequence, 0 to 2**31 - 1.
  """

  prompt: int
  seed: int
  index: int


@dataclasses.dataclass(frozen=True)
class Request:
  """Describes images to sample; see Imagen.sample for its arguments.

  Attributes:
    prompts: the texts; None for unconditional images.
    rows: the images.
    stages: the numbers of the cascade's stages to run.
    samplings: the settings of every stage of the cascade.
    changes: the arguments that change the config's settings, as texts.
    negative: a negative prompt for each prompt, or None.
    text: the encoded prompts, or None.
    lowres: the first stage's low-resolution image for each prompt, float32 [n,
      h, w, 3] in [-1, 1], or None.
    batch_size: images at a time.
    callback: as in Imagen.sample.
    callback_every: as in Imagen.sample.
    progress: as in Imagen.sample.
  """

  prompts: tuple[str, ...] | None
  rows: tuple[Row, ...]
  stages: range
  samplings: tuple[Sampling, ...]
  changes: Mapping[str, str]
  negative: tuple[str, ...] | None
  text: TextEmbedding | None
  lowres: np.ndarray | None
  batch_size: int
  callback: Callback | None
  callback_every: int
  progress: bool

  @property
  def reads_text(self) -> bool:
    """True if sampling encodes texts and so depends on the encoder."""
    return self.text is None or self.negative is not None

  def part(self, rows: Sequence[Row]) -> "Request":
    """Returns the request of some of the rows, and of their prompts alone."""
    used = sorted({row.prompt for row in rows})
    place = {prompt: i for i, prompt in enumerate(used)}
    take = lambda values: values and tuple(values[i] for i in used)
    of_arrays = lambda tree: jax.tree.map(lambda leaf: leaf[used], tree)
    return dataclasses.replace(
      self,
      prompts=take(self.prompts),
      rows=tuple(row._replace(prompt=place[row.prompt]) for row in rows),
      negative=take(self.negative),
      text=of_arrays(self.text),
      lowres=of_arrays(self.lowres),
    )


def make_request(
  cascade: Cascade,
  prompts: Sequence[str] | None,
  rows: Sequence[Row],
  *,
  batch_size: int,
  guidance: PerStage = None,
  steps: PerStage = None,
  negative_prompt: str | Sequence[str] | None = None,
  stages: tuple[str | None, str | None] | None = None,
  image: Picture | Sequence[Picture] | None = None,
  text: TextEmbedding | None = None,
  callback: Callback | None = None,
  callback_every: int = 1,
  progress: bool = True,
) -> Request:
  """Returns a checked Request; see Imagen.sample for the arguments.

  Raises:
    ValueError: if an argument cannot be used.
  """
  count = 1 if prompts is None else len(prompts)
  if prompts is not None:
    if not count:
      raise ValueError("there are no prompts, expected at least one")
    check_prompts(prompts)
  for name, value in (
    ("batch_size", batch_size),
    ("callback_every", callback_every),
  ):
    if value < 1:
      raise ValueError(f"{name} is {value}, expected at least 1")
  if text is not None and text.mask.shape[0] != count:
    raise ValueError(
      f"text has {text.mask.shape[0]} row(s), expected {count}, one per prompt"
    )
  numbers = stage_numbers(cascade, stages)
  samplings, changes = _samplings(cascade, prompts, guidance, steps)
  negative = _one_each("negative_prompt", negative_prompt, str, count)
  if negative is not None:
    check_prompts(negative)
    if all(samplings[i].guidance == 1 for i in numbers):
      logging.warning("negative_prompt has no effect without guidance")
  return Request(
    prompts=None if prompts is None else tuple(prompts),
    rows=tuple(rows),
    stages=numbers,
    samplings=samplings,
    changes=changes,
    negative=negative,
    text=text,
    lowres=_lowres(cascade, numbers, image, count),
    batch_size=batch_size,
    callback=callback,
    callback_every=callback_every,
    progress=progress,
  )


def stops(request: Request, steps: int) -> Iterator[int]:
  """Yields the steps after which to pause, for the callback and for progress.

  Pauses for progress come about once a second. An image's bits do not depend on
  them. Several hosts must pause at the same steps, whatever their clocks. They
  pause for the callback alone.
  """
  paced = jax.process_count() == 1
  step, stride, since = 0, 1 if paced else steps, time.monotonic()
  while step < steps:
    stop = min(step + stride, steps)
    if request.callback:
      every = request.callback_every
      stop = min(stop, (step + every - 1) // every * every + 1)
    yield stop
    now = time.monotonic()
    if paced:
      fits = int(PACE * (stop - step) / max(now - since, 1e-6))
      stride = max(1, min(fits, 2 * stride))
    step, since = stop, now


def is_observed(request: Request, step: int, steps: int) -> bool:
  """Returns whether the callback is called for a step of 0, ..., steps - 1."""
  return step % request.callback_every == 0 or step == steps - 1


def image_rows(
  prompts: int,
  *,
  num_images: int = 1,
  seed: int | Sequence[int] = 0,
  index: int | Sequence[int] | None = None,
) -> list[Row]:
  """Returns the rows of a number of prompts, prompt by prompt.

  See Imagen.sample for the arguments.

  Raises:
    ValueError: if a value is out of range, or if arguments exclude each other.
  """
  if num_images < 1:
    raise ValueError(f"num_images is {num_images}, expected at least 1")
  single = isinstance(seed, int | np.integer)
  for each in [seed] if single else seed:
    if not 0 <= each < SEEDS:
      raise ValueError(f"seed is {each}, expected 0 to 2**32 - 1")
  if not single:
    if index is not None or num_images not in (1, len(seed)):
      raise ValueError(
        "seed is a list, which has one image per seed, expected neither index "
        "nor num_images beside it"
      )
    pairs = [(int(each), 0) for each in seed]
  elif index is not None:
    if num_images != 1:
      raise ValueError(
        f"num_images is {num_images} beside index, expected one of the two"
      )
    indices = [index] if isinstance(index, int | np.integer) else index
    for each in indices:
      if not 0 <= each < 2**31:
        raise ValueError(f"index is {each}, expected 0 to 2**31 - 1")
    pairs = [(int(seed), int(each)) for each in indices]
  else:
    pairs = [(int(seed), i) for i in range(num_images)]
  if not pairs:
    raise ValueError("there are no images to make, expected at least one")
  return [Row(p, *pair) for p in range(prompts) for pair in pairs]


def stage_numbers(
  cascade: Cascade, stages: tuple[str | None, str | None] | None
) -> range:
  """Returns the numbers of the stages from first to last, both included."""
  if stages is None:
    return range(len(cascade.names))
  if isinstance(stages, str) or len(stages) != 2:
    raise ValueError(
      f"stages is {stages!r}, expected (first, last), None for an end"
    )
  first, last = stages
  for name in stages:
    if name is not None and name not in cascade.names:
      known = ", ".join(cascade.names)
      raise ValueError(f"stages names {name!r}, expected one of {known}")
  start = 0 if first is None else cascade.names.index(first)
  end = len(cascade.names) if last is None else cascade.names.index(last) + 1
  if start >= end:
    raise ValueError(f"stages is {stages!r}, but {first} comes after {last}")
  return range(start, end)


def _samplings(
  cascade: Cascade,
  prompts: Sequence[str] | None,
  guidance: PerStage,
  steps: PerStage,
) -> tuple[tuple[Sampling, ...], dict[str, str]]:
  """Returns every stage's settings, and the changes to them as texts."""
  weights = _per_stage("guidance", cascade.names, guidance)
  counts = _per_stage("steps", cascade.names, steps)
  if prompts is None:
    if guidance is not None:
      raise ValueError(
        f"guidance is {guidance} without prompts, expected none: without a "
        "text there is nothing to guide to"
      )
    weights = dict.fromkeys(cascade.names, 1.0)
  found = []
  for name, stage, sampling in zip(
    cascade.names, cascade.stages, cascade.samplings, strict=True
  ):
    weight, count = weights.get(name), counts.get(name)
    if isinstance(guidance, int | float) and sampling.guidance == 1:
      weight = None  # one number is for all stages whose config guides
    changes = {"guidance": weight, "steps": count}
    changes = {k: v for k, v in changes.items() if v is not None}
    try:
      changed = sampling.replace(**changes)
      stage.check_sampling(changed)
    except ValueError as error:
      raise ValueError(f"stage {name}: {error}") from error
    found.append(changed)
  given = {"guidance": guidance, "steps": steps}
  return tuple(found), {k: str(v) for k, v in given.items() if v is not None}


def _per_stage(
  what: str, names: Sequence[str], given: PerStage
) -> dict[str, Any]:
  """Returns the values by stage of one number, a list or a dict."""
  if given is None:
    return {}
  if isinstance(given, Mapping):
    for name in given:
      if name not in names:
        known = ", ".join(names)
        raise ValueError(f"{what} names {name!r}, expected one of {known}")
    found = dict(given)
  elif isinstance(given, Sequence) and not isinstance(given, str):
    if len(given) != len(names):
      raise ValueError(
        f"{what} has {len(given)} values, expected {len(names)}, one each for "
        f"{', '.join(names)}"
      )
    found = dict(zip(names, given, strict=True))
  else:
    found = dict.fromkeys(names, given)
  kinds = int if what == "steps" else (int, float)
  for value in found.values():
    sound = isinstance(value, kinds) and not isinstance(value, bool)
    if value is not None and not (sound and math.isfinite(value)):
      number = "a whole number" if what == "steps" else "a number"
      raise ValueError(f"{what} is {value!r}, expected {number}")
  return found


def _one_each(
  what: str, given: Any, kind: type | tuple[type, ...], count: int
) -> tuple[Any, ...] | None:
  """Returns one value per prompt, given one for all or one per prompt."""
  if given is None:
    return None
  if isinstance(given, kind):
    return (given,) * count
  if len(given) != count:
    raise ValueError(
      f"{what} has {len(given)} values, expected one, or {count}, one per "
      "prompt"
    )
  return tuple(given)


def _lowres(
  cascade: Cascade,
  numbers: range,
  image: Picture | Sequence[Picture] | None,
  count: int,
) -> np.ndarray | None:
  """Returns the first stage's low-resolution images, one per prompt."""
  stage, name = cascade.stages[numbers[0]], cascade.names[numbers[0]]
  if stage.lowres_size is None:
    if image is not None:
      raise ValueError(
        f"image is given, but stage {name} makes images from text alone, "
        "expected stages=(SR_STAGE, None) beside image"
      )
    return None
  if image is None:
    raise ValueError(
      f"stage {name} upsamples, expected image, what it is to upsample"
    )
  kinds = (Image.Image, np.ndarray, str, os.PathLike)
  if isinstance(image, kinds):  # one image for all prompts is read once
    return np.stack([_at_size(image, stage.lowres_size)] * count)
  given = _one_each("image", image, kinds, count)
  return np.stack([_at_size(each, stage.lowres_size) for each in given])


def _at_size(image: Picture, size: int) -> np.ndarray:
  """Resizes an image's central square to float32 [size, size, 3] in [-1, 1]."""
  if isinstance(image, str | os.PathLike):
    try:
      with open(expand(image), "rb") as file:
        pixels = images.decode(file.read())
    except OSError as error:
      raise ValueError(f"image {image} cannot be read: {error.strerror}") from (
        error
      )
    except ValueError as error:
      raise ValueError(f"image {image}: {error}") from error
  elif isinstance(image, np.ndarray) and np.issubdtype(
    image.dtype, np.floating
  ):
    if image.ndim != 3 or image.shape[2] != 3 or not np.all(abs(image) <= 1):
      raise ValueError(
        f"image is {image.dtype} {list(image.shape)}, expected [H, W, 3] in "
        "[-1, 1] or uint8"
      )
    square = images.central_square(image.astype(np.float32))
    return images.resize(square, size)
  else:
    pixels = images.decode(image)
  return images.resize(images.to_float(images.central_square(pixels)), size)
