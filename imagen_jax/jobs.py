"""Large jobs: images are written as they are finished; a job can resume.

The verbs sample and evaluate use it.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from imagen_jax.files import expand
from imagen_jax.imagen import Imagen
from imagen_jax.parallel.processes import from_first
from imagen_jax.request import Request, Row
from imagen_jax.samples import (
  grid_columns,
  grid_name,
  image_name,
  write_sheets,
)

ROUND = 256  # images whose texts are encoded and kept at a time


@dataclasses.dataclass(frozen=True)
class Job:
  """Describes images to sample into a folder.

  Attributes:
    cascade: the cascade that samples them.
    request: all images, finished ones included.
    ids: each image's id, as Samples.ids.
    paths: each image's file.
    missing: the numbers of the unfinished images.
  """

  cascade: Imagen
  request: Request
  ids: tuple[str, ...]
  paths: tuple[epath.Path, ...]
  missing: tuple[int, ...]

  def run(self) -> Iterator[list[epath.Path]]:
    """Samples the missing images; yields each batch's paths when it is written.

    The first of several hosts writes. The texts of ROUND images at a time are
    encoded. The encoder then leaves memory, before the nets are used.

    Raises:
      ValueError: if images are not finite, or if a file cannot be written.
    """
    for start in range(0, len(self.missing), ROUND):
      rows = [self.request.rows[i] for i in self.missing[start : start + ROUND]]
      part = self.request.part(rows)
      for samples in self.cascade.run(part, keep_text=False):
        paths = [self.paths[0].parent] * len(samples)
        if jax.process_index() == 0:
          paths = samples.save(self.paths[0].parent)
        yield paths

  def write_sheets(self) -> list[epath.Path]:
    """Writes all images on sheets, read back one sheet at a time.

    Raises:
      ValueError: if a file cannot be written.
    """
    request, rows = self.request, self.request.rows
    prompts = [request.prompts and request.prompts[r.prompt] for r in rows]
    text = {"seed": str(rows[0].seed), **request.changes}
    return write_sheets(
      map(read_image, self.paths),
      prompts,
      grid_columns(prompts),
      self.paths[0].parent,
      grid_name(self.ids, rows[0].seed, request.changes),
      text,
    )


def plan(
  cascade: Imagen,
  prompts: Sequence[str] | None,
  rows: Sequence[Row],
  folder: str | os.PathLike,
  **options: Any,
) -> Job:
  """Returns the job of sampling rows into a folder; samples nothing yet.

  An image is finished if its file's id matches: the same config, weights,
  prompt, seed, index and version. Newly trained weights at the same path count
  as other weights.

  Args:
    cascade: the cascade that samples the images.
    prompts: a list of texts, or None for unconditional images.
    rows: the images (request.image_rows).
    folder: the folder of the PNGs; gs:// works.
    **options: guidance, steps and so on, as for Imagen.sample.

  Raises:
    ValueError: if an argument cannot be used, or if weights do not exist.
  """
  request = cascade.request(prompts, rows, **options)
  ids, folder = cascade.ids(request), epath.Path(expand(folder))
  paths = tuple(
    folder
    / image_name(
      request.prompts and request.prompts[row.prompt],
      row.seed,
      row.index,
      request.changes,
      image_id,
    )
    for row, image_id in zip(request.rows, ids, strict=True)
  )
  lacks = [
    not is_finished(path, image_id)
    for path, image_id in zip(paths, ids, strict=True)
  ]
  # The first host decides, because hosts may not share the folder.
  missing = np.flatnonzero(from_first(np.array(lacks)))
  return Job(cascade, request, ids, paths, tuple(missing.tolist()))


def is_finished(path: epath.Path, image_id: str) -> bool:
  """Returns whether a file is the image with this id."""
  try:
    with path.open("rb") as file, Image.open(file, formats=["PNG"]) as image:
      return image.info.get("id") == image_id
  except Exception:  # missing or no image; file systems raise many kinds
    return False


def read_image(path: epath.Path) -> np.ndarray:
  """Reads an image that was written here, as uint8 [H, W, 3]."""
  with path.open("rb") as file, Image.open(file, formats=["PNG"]) as image:
    return np.asarray(image.convert("RGB"))
