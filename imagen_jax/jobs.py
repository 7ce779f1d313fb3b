"""Large jobs: images are written as they are finished; a job can resume.

The verbs sample and evaluate use it. Of several processes each writes its own
images.
"""

import dataclasses
import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image

from imagen_jax import files
from imagen_jax.imagen import Imagen
from imagen_jax.parallel.processes import from_first, shared_errors
from imagen_jax.progress import Progress
from imagen_jax.request import Request, Row
from imagen_jax.samples import (
  Samples,
  grid_columns,
  grid_name,
  image_name,
  write_sheets,
)
from imagen_jax.stage import Sampling

THREADS = 32  # that write or check files, mostly waiting for a store


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

  def run(self) -> Iterator[tuple[int, Sequence[epath.Path]]]:
    """Samples the missing images; all processes of a job call it.

    Threads write a batch's images while the devices compute the next batch. No
    more than these two batches are in memory. So a job that is killed loses at
    most two batches.

    Yields:
      For each batch, when it is computed, the number of its images and the
      paths that have been written since. At the end 0 and the last paths.

    Raises:
      ValueError: on all processes, if images are not finite, or if a file
        cannot be written on any of them.
    """
    if not self.missing:
      return
    rows = [self.request.rows[i] for i in self.missing]
    paths = iter([self.paths[i] for i in self.missing])
    count, writing = 0, []
    with ThreadPoolExecutor(THREADS, "write") as pool:
      for more, samples in self.cascade.run_share(self.request.part(rows)):
        _wait(writing)
        yield more, [next(paths) for _ in range(count)]
        count, writing = more, self._write(pool, samples)
      _wait(writing)
    yield 0, list(paths)

  def _write(self, pool: ThreadPoolExecutor, samples: Samples) -> list[Future]:
    """Starts to write images, each in a thread."""
    folder = self.paths[0].parent
    return [pool.submit(samples.write, folder, i) for i in range(len(samples))]

  def write_sheets(self) -> list[epath.Path]:
    """Writes all images on sheets, which the processes share out.

    Images are read back, those of few sheets at a time.

    Returns:
      The paths of all sheets.

    Raises:
      ValueError: on all processes, if a file cannot be written on any of them.
    """
    request, rows = self.request, self.request.rows
    prompts = [request.prompts and request.prompts[r.prompt] for r in rows]
    text = {"seed": str(rows[0].seed), **request.changes}
    stage = self.cascade.cascade.stages[request.stages[-1]]
    with shared_errors():
      return write_sheets(
        lambda i: read_image(self.paths[i]),
        (stage.size, stage.size),
        prompts,
        grid_columns(prompts),
        self.paths[0].parent,
        grid_name(self.ids, rows[0].seed, request.changes),
        text,
        share=(jax.process_index(), jax.process_count()),
      )


def plan(
  cascade: Imagen,
  prompts: Sequence[str] | None,
  rows: Sequence[Row],
  folder: str | os.PathLike,
  *,
  point: tuple[str, Sequence[Sampling]] | None = None,
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
    folder: the folder of the PNGs, of which all processes see the same one;
      gs:// works.
    point: a name, and sampling settings of every stage that replace the
      cascade's. Points share their programs as far as only numbers differ.
    **options: guidance, steps and so on, as for Imagen.sample.

  Raises:
    ValueError: if an argument cannot be used, or if weights do not exist.
  """
  request = cascade.request(prompts, rows, **options)
  if point is not None:
    name, samplings = point
    changes = {**request.changes, "point": name}
    request = dataclasses.replace(
      request, samplings=tuple(samplings), changes=changes
    )
  ids, folder = cascade.ids(request), epath.Path(files.expand(folder))
  check_shared(folder)
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
  lacks = np.ones(len(paths), bool)
  with shared_errors():
    # The first process looks, so that all agree and a store is asked once.
    if jax.process_index() == 0:
      lacks = ~are_finished(folder, paths, ids)
  missing = np.flatnonzero(from_first(lacks))
  return Job(cascade, request, ids, paths, tuple(missing.tolist()))


def sample_all(job: Job, title: str) -> None:
  """Samples the missing images of a job into its folder, showing progress.

  All processes call it.
  """
  quiet = jax.process_index() > 0
  progress = Progress(title, len(job.missing), unit="image", quiet=quiet)
  count = 0
  for more, _ in job.run():
    count += more
    if more:
      progress.show(count)


def are_finished(
  folder: epath.Path, paths: Sequence[epath.Path], ids: Sequence[str]
) -> np.ndarray:
  """Returns for each path whether its file is the image with its id, as bool.

  The folder is listed once. Only the files that it has are opened.

  Raises:
    ValueError: if the folder cannot be listed.
  """
  try:
    found = {path.name for path in folder.iterdir()} if folder.exists() else ()
  except Exception as error:  # stores raise many kinds
    raise ValueError(
      f"{folder} cannot be read: {files.reason(error)}"
    ) from error
  done = np.array([path.name in found for path in paths])
  with ThreadPoolExecutor(THREADS, "check") as pool:
    pairs = [(paths[i], ids[i]) for i in np.flatnonzero(done)]
    done[done] = list(pool.map(is_finished, *zip(*pairs))) if pairs else []
  return done


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


def check_shared(folder: epath.Path) -> None:
  """Checks that all processes see the same folder; all of them call it.

  An object store is the same for all. On disks the first process makes the
  folder, and for a moment a file that the others look for.

  Raises:
    ValueError: on all processes, if one does not see the file.
  """
  if jax.process_count() == 1 or files.is_remote(folder):
    return
  number = from_first(np.array(secrets.randbits(31)))
  probe = folder / f".{number}.probe"
  with shared_errors():
    if jax.process_index() == 0:
      files.write(probe, b"", parents=True)
  try:
    with shared_errors():
      if not probe.exists():
        raise ValueError(
          f"{folder} of process {jax.process_index()} is not that of process "
          "0, expected a folder that all share, such as one on gs://"
        )
  finally:
    if jax.process_index() == 0:
      probe.unlink(missing_ok=True)


def _wait(writing: Sequence[Future]) -> None:
  """Waits until images are written, on all processes.

  Raises:
    ValueError: on all processes, if one could not write an image.
  """
  with shared_errors():
    wait(writing)
    for future in writing:
      future.result()
