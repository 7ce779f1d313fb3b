"""CLIP's features of images and captions, which share one space."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from imagen_jax.evals.features import (
  Extractor,
  check_images,
  fill_rows,
  local_shardings,
)
from imagen_jax.nets.clip_image import ClipImageFeatures
from imagen_jax.nets.clip_text import ClipTextFeatures
from imagen_jax.parallel import compiler
from imagen_jax.progress import Progress
from imagen_jax.text.tokenizer import Tokenizer

# Of the images that CLIP was trained with, in [0, 1].
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
  """Computes features by CLIP, on all devices of this process.

  Attributes:
    text: the text tower.
    image: the image tower.
    load: returns the parameters of both under "text" and "image". It is called
      once, when features are first computed.
    tokenizer: encodes captions.
    model: the model's name, such as ViT-L/14.
    digest: identifies the weights.
  """

  text: ClipTextFeatures
  image: ClipImageFeatures
  load: Callable[[], Mapping[str, Any]]
  tokenizer: Tokenizer
  model: str
  digest: str

  @functools.cached_property
  def extractor(self) -> Extractor:
    """The features of images."""

    def compute(images: np.ndarray) -> np.ndarray:
      x = preprocess(images, self.image.image_size)
      return self._apply(self.image, "image", x)

    return Extractor(f"clip {self.model} {self.digest}", compute)

  def of_captions(
    self, captions: Sequence[str], batch_size: int, *, quiet: bool = False
  ) -> np.ndarray:
    """Computes the features of captions, float32 [N, d].

    Args:
      captions: the captions; longer ones are cut to CLIP's length.
      batch_size: captions whose features are computed at a time.
      quiet: logs no progress.

    Raises:
      ValueError: a caption is empty.
    """
    ids, mask = self.tokenizer(captions)
    found = []
    progress = Progress(
      "clip of captions", len(ids), unit="caption", quiet=quiet
    )
    with progress:
      for start in range(0, len(ids), batch_size):
        at = slice(start, start + batch_size)
        count = len(ids[at])
        # A batch always has one size, so that one program computes all.
        rows = (fill_rows(array[at], batch_size) for array in (ids, mask))
        found.append(self._apply(self.text, "text", *rows)[:count])
        progress.show(start + count)
    return np.concatenate(found)

  def _apply(self, net: Any, tower: str, *arrays: np.ndarray) -> np.ndarray:
    """Applies a tower to rows of arrays, which all devices share."""
    _, rows = local_shardings()
    count, ways = len(arrays[0]), rows.mesh.size
    arrays = [fill_rows(array, ways) for array in arrays]
    found = _apply_net(net, self._params[tower], *jax.device_put(arrays, rows))
    return np.asarray(found)[:count]

  @functools.cached_property
  def _params(self) -> Mapping[str, Any]:
    """The parameters, on all devices of this process."""
    replicated, _ = local_shardings()
    return jax.device_put(self.load(), replicated)


@functools.partial(compiler.jit, static_argnums=0)
def _apply_net(net: Any, params: Any, *arrays: jax.Array) -> jax.Array:
  return net.apply({"params": params}, *arrays)


def preprocess(images: np.ndarray, size: int) -> np.ndarray:
  """Resizes, crops and normalises images as CLIP does.

  The shorter side is resized to `size` by PIL's antialiased bicubic filter,
  which rounds to 8 bits. The central square is kept.

  Args:
    images: uint8 [B, H, W, 3].
    size: of the output, in pixels.

  Returns:
    float32 [B, size, size, 3].

  Raises:
    ValueError: images are not uint8.
  """
  check_images(images)
  height, width = images.shape[1:3]
  short = min(height, width)
  to = size * width // short, size * height // short
  left, top = (round((length - size) / 2) for length in to)
  out = np.empty((len(images), size, size, 3), np.float32)
  for i, image in enumerate(images):
    resized = Image.fromarray(image).resize(to, Image.Resampling.BICUBIC)
    box = left, top, left + size, top + size
    out[i] = np.asarray(resized.crop(box), np.float32)
  return (out / 255 - MEAN) / STD
