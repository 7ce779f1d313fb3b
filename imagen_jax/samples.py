"""Images that were sampled, with what they were made from."""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image

from imagen_jax.data.images import to_uint8
from imagen_jax.data.png import encode_png, grid, write_png
from imagen_jax.files import expand


@dataclasses.dataclass(frozen=True)
class Samples:
  """Sampled images, in order; a notebook shows them as a grid.

  prompts: the prompt of each image; None for an unconditional image.
  seeds: the seed of each image.
  indices: the number of each image in its seed's sequence.
  stages: each stage's images by its name, float32 [N, size, size, 3] in
    [-1, 1], from small to large.
  settings: what else they were made with, as texts: `config`, and the
    arguments that changed its sampling.
  """

  prompts: tuple[str | None, ...]
  seeds: tuple[int, ...]
  indices: tuple[int, ...]
  stages: Mapping[str, np.ndarray]
  settings: Mapping[str, str]

  def __len__(self) -> int:
    return len(self.prompts)

  @property
  def arrays(self) -> np.ndarray:
    """The images, float32 [N, size, size, 3] in [-1, 1]."""
    return self.stages[next(reversed(self.stages))]

  @property
  def images(self) -> list[Image.Image]:
    """The images, RGB in 8 bits."""
    return [Image.fromarray(image) for image in to_uint8(self.arrays)]

  def grid(self, columns: int | None = None) -> Image.Image:
    """Returns all images on one sheet, row by row.

    columns: by default one row per prompt where prompts have several images
      each, else at most four images in a row.
    """
    if columns is None:
      first = self.prompts.index(self.prompts[0])
      each = len(self.prompts) // len(set(self.prompts))
      columns = each if each > 1 and first == 0 else min(len(self), 4)
    return Image.fromarray(grid(list(to_uint8(self.arrays)), columns))

  def save(self, folder: str | os.PathLike) -> list[epath.Path]:
    """Writes each image as a PNG, its prompt and settings in the metadata.

    Folders that lack are made; gs:// paths too. ValueError if a file cannot be
    written.
    """
    folder, paths = epath.Path(expand(folder)), []
    for i, image in enumerate(to_uint8(self.arrays)):
      prompt, seed, index = self.prompts[i], self.seeds[i], self.indices[i]
      name = file_stem("" if prompt is None else prompt)
      path = folder / f"{name}-{self._suffix(seed)}-{index}.png"
      text = {} if prompt is None else {"prompt": prompt}
      text |= {"seed": str(seed), "index": str(index), **self.settings}
      write_png(path, image, text)
      paths.append(path)
    return paths

  def save_grid(self, folder: str | os.PathLike) -> epath.Path:
    """Writes grid() as a PNG, the prompts in its metadata; returns its path."""
    prompts = json.dumps(list(dict.fromkeys(self.prompts)))
    name = f"{with_hash('grid', prompts)}-{self._suffix(self.seeds[0])}.png"
    path = epath.Path(expand(folder)) / name
    text = {"prompt": prompts, "seed": str(self.seeds[0]), **self.settings}
    write_png(path, np.asarray(self.grid()), text)
    return path

  def _suffix(self, seed: int) -> str:
    """Returns the settings as file names hold them: "s0-guidance5.0"."""
    changes = [
      f"{key}{re.sub(r'[^a-z0-9.,-]+', '_', value.lower()).strip('_')}"
      for key, value in self.settings.items()
      if key != "config"
    ]
    return "-".join([f"s{seed}", *changes])

  def _repr_png_(self) -> bytes:
    """Returns the grid for a notebook, its side at most 2048 pixels."""
    sheet = self.grid()
    shrink = math.ceil(max(sheet.size) / 2048)
    return encode_png(np.asarray(sheet.reduce(shrink) if shrink > 1 else sheet))


def join(parts: Sequence[Samples]) -> Samples:
  """Puts the images of several Samples, of the same stages, into one."""
  first = parts[0]
  return Samples(
    prompts=sum((part.prompts for part in parts), ()),
    seeds=sum((part.seeds for part in parts), ()),
    indices=sum((part.indices for part in parts), ()),
    stages={
      name: np.concatenate([part.stages[name] for part in parts])
      for name in first.stages
    },
    settings=first.settings,
  )


def file_stem(prompt: str) -> str:
  """Returns a prompt's words, "a_red_star"; with a hash if that is not all."""
  words = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60]
  whole = words.replace("_", " ") == prompt and words
  return words if whole else with_hash(words, prompt)


def with_hash(name: str, text: str) -> str:
  """Returns name_1a2b3c4d, different for different texts."""
  return f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:8]}".lstrip("_")
