"""Sampled images, with the settings that made them."""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from etils import epath
from PIL import Image

from imagen_jax.data.images import to_uint8
from imagen_jax.data.png import encode_png, grid, write_png
from imagen_jax.files import expand

SHEET_PIXELS = 2**25  # the most pixels of a sheet, unless one image has more
SHEETS = 4  # that are made at a time, of 0.3 GB each


@dataclasses.dataclass(frozen=True)
class Samples:
  """Holds sampled images, in order; a notebook shows them as a grid.

  Attributes:
    prompts: the prompt of each image; None for an unconditional image.
    seeds: the seed of each image.
    indices: the number of each image in its seed's sequence.
    ids: for each image a checksum of all that it was made from: prompt, seed,
      index, settings, weights and version.
    stages: each stage's images by its name, float32 [N, size, size, 3] in
      [-1, 1], from small to large.
    settings: texts that all images share: `config`, the identities of its
      `weights`, the package's `version`, and the arguments that changed its
      sampling.
  """

  prompts: tuple[str | None, ...]
  seeds: tuple[int, ...]
  indices: tuple[int, ...]
  ids: tuple[str, ...]
  stages: Mapping[str, np.ndarray]
  settings: Mapping[str, str]

  def __len__(self) -> int:
    """Returns the number of images."""
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

    columns: images in a row; None as in grid_columns.
    """
    columns = grid_columns(self.prompts) if columns is None else columns
    return Image.fromarray(grid(list(to_uint8(self.arrays)), columns))

  def save(self, folder: str | os.PathLike) -> list[epath.Path]:
    """Writes each image as a PNG, with its prompt and settings in the metadata.

    Missing folders are made, on gs:// too. The name changes with anything that
    the image was made from.

    Returns:
      The paths of the files.

    Raises:
      ValueError: if a file cannot be written.
    """
    return [self.write(folder, i) for i in range(len(self))]

  def write(self, folder: str | os.PathLike, i: int) -> epath.Path:
    """Writes image i as save does, and returns its path.

    Raises:
      ValueError: if the file cannot be written.
    """
    prompt, seed, index = self.prompts[i], self.seeds[i], self.indices[i]
    name = image_name(prompt, seed, index, self.settings, self.ids[i])
    text = {} if prompt is None else {"prompt": prompt}
    text |= {"seed": str(seed), "index": str(index), **self.settings}
    path = epath.Path(expand(folder)) / name
    write_png(path, to_uint8(self.arrays[i]), text | {"id": self.ids[i]})
    return path

  def save_grid(self, folder: str | os.PathLike) -> list[epath.Path]:
    """Writes the images on sheets as PNGs, with the prompts in the metadata.

    It is grid() where that has at most 2**25 pixels. Larger grids are split
    into several sheets, with fewer images in a row.

    Returns:
      The paths of the files.
    """
    prompts, images = self.prompts, to_uint8(self.arrays)
    columns = grid_columns(prompts)
    name = grid_name(self.ids, self.seeds[0], self.settings)
    text = {"seed": str(self.seeds[0]), **self.settings}
    return write_sheets(
      lambda i: images[i],
      images.shape[1:3],
      prompts,
      columns,
      folder,
      name,
      text,
    )

  def _repr_png_(self) -> bytes:
    """Returns the grid for a notebook, at most 2048 pixels high and wide."""
    sheet = self.grid()
    shrink = math.ceil(max(sheet.size) / 2048)
    return encode_png(np.asarray(sheet.reduce(shrink) if shrink > 1 else sheet))


def join(parts: Sequence[Samples]) -> Samples:
  """Joins several Samples of the same stages into one."""
  first = parts[0]
  return Samples(
    prompts=sum((part.prompts for part in parts), ()),
    seeds=sum((part.seeds for part in parts), ()),
    indices=sum((part.indices for part in parts), ()),
    ids=sum((part.ids for part in parts), ()),
    stages={
      name: np.concatenate([part.stages[name] for part in parts])
      for name in first.stages
    },
    settings=first.settings,
  )


def grid_columns(prompts: Sequence[str | None]) -> int:
  """Returns the number of columns of a grid, given the prompt of each image.

  Prompts with several images each get one row per prompt. Otherwise a row has
  at most four images.
  """
  each = len(prompts) // len(set(prompts))
  return each if each > 1 else min(len(prompts), 4)


def write_sheets(
  read: Callable[[int], np.ndarray],
  shape: tuple[int, int],
  prompts: Sequence[str | None],
  columns: int,
  folder: str | os.PathLike,
  name: str,
  text: Mapping[str, str],
  *,
  share: tuple[int, int] = (0, 1),
) -> list[epath.Path]:
  """Writes images on sheets of full rows, as PNGs; returns their paths.

  A sheet has at most SHEET_PIXELS. SHEETS threads each hold the images of one
  sheet. Several sheets are numbered from 1.

  Args:
    read: called as read(i), returns image i as uint8 [H, W, 3].
    shape: (H, W) of all images.
    prompts: the prompt of each image, for the metadata.
    columns: images in a row, or fewer if the sheet would be too wide.
    folder: the folder of the sheets; it is made.
    name: the file name without its ending.
    text: the metadata of every sheet.
    share: (k, n) writes sheets k, k + n, ... alone; all paths are returned.

  Raises:
    ValueError: if a file cannot be written.
  """
  folder = epath.Path(expand(folder))
  most = max(1, SHEET_PIXELS // math.prod(shape))  # images on a sheet
  columns = min(columns, max(1, math.isqrt(most)))  # no row is a sheet's width
  size = max(1, most // columns) * columns
  starts = range(0, len(prompts), size)
  paths = [
    folder / f"{name}{f'-{i + 1}' if len(starts) > 1 else ''}.png"
    for i in range(len(starts))
  ]

  def write(number: int) -> None:
    """Writes one sheet."""
    part = range(len(prompts))[starts[number] : starts[number] + size]
    of_sheet = dict.fromkeys(prompts[i] for i in part)
    note = {"prompt": json.dumps(list(of_sheet)), **text}
    write_png(paths[number], grid(list(map(read, part)), columns), note)

  first, step = share
  with ThreadPoolExecutor(SHEETS, "sheets") as pool:
    list(pool.map(write, range(len(paths))[first::step]))
  return paths


def image_name(
  prompt: str | None,
  seed: int,
  index: int,
  settings: Mapping[str, str],
  image_id: str,
) -> str:
  """Returns an image's file name, "a_red_star-s0-guidance5.0-3-1a2b3c4d.png".

  For a human reader, it begins with the prompt's words and the changed
  settings. It ends with the image's index and the beginning of its id.
  """
  words = _words("" if prompt is None else prompt)
  parts = [_suffix(seed, settings), str(index), image_id[:8]]
  return "-".join([words, *parts] if words else parts) + ".png"


def grid_name(
  ids: Sequence[str], seed: int, settings: Mapping[str, str]
) -> str:
  """Returns the file name of a grid of images, without its ending."""
  digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
  return f"grid-{_suffix(seed, settings)}-{digest[:8]}"


def _words(prompt: str) -> str:
  """Returns the beginning of a prompt for a file name: "a_red_star"."""
  return re.sub(r"[^a-z0-9]+", "_", prompt.lower())[:60].strip("_")


def _suffix(seed: int, settings: Mapping[str, str]) -> str:
  """Returns seed and changed settings for a file name: "s0-guidance5.0"."""
  changes = [
    f"{key}{re.sub(r'[^a-z0-9.,-]+', '_', value.lower()).strip('_')[:40]}"
    for key, value in settings.items()
    if key not in ("config", "weights", "version")
  ]
  return "-".join([f"s{seed}", *changes])
