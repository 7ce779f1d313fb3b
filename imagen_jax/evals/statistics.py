"""Features of many images, kept in files so that kill -9 loses little.

Moments are kept of them, or the features themselves. Each of several processes
computes the features of its own images. The moments are merged exactly, so
neither the batch size nor the number of processes changes a distance by more
than rounding errors.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from etils import epath

from imagen_jax import files
from imagen_jax.evals.embeddings import Embeddings, join, join_hosts
from imagen_jax.evals.features import Extractor
from imagen_jax.evals.frechet import FeatureStats, merge, merge_hosts
from imagen_jax.parallel.processes import from_first, shared_errors
from imagen_jax.progress import Progress

CHUNK = 512  # images that are in memory at a time, and added to the moments
KEEP_EVERY = 60.0  # seconds between two writes of the moments so far
THREADS = 16  # that read images
MOST_LEFT_OUT = 0.01  # the largest share of images that cannot be used
Kept = FeatureStats | Embeddings


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Describes images whose features are wanted.

  Attributes:
    name: all that determines the images, as JSON values.
    count: the number of images.
    read: called as read(i) from several threads, returns image i as uint8 [H,
      W, 3], all of one size; None for an image that is left out.
  """

  name: Mapping[str, Any]
  count: int
  read: Callable[[int], np.ndarray | None]


def image_stats(
  images: ImageSet,
  extractor: Extractor,
  folder: epath.Path,
  *,
  batch_size: int,
  title: str,
  kind: type[Kept] = FeatureStats,
) -> Kept | None:
  """Returns what is kept of images' features, from a file if it is known.

  All processes call it. An interrupted call resumes from its files, which are
  at most a minute old.

  Args:
    images: the images.
    extractor: computes the features.
    folder: holds the files. All processes see the same folder.
    batch_size: images whose features are computed at a time.
    title: the head of progress lines.
    kind: what is kept of features, the same for all calls with an extractor.

  Returns:
    The moments or embeddings on the first process; None on all others.

  Raises:
    ValueError: on all processes, if an image or the folder cannot be used.
  """
  name = json.dumps(
    {**images.name, "count": images.count, "features": extractor.name},
    sort_keys=True,
  )
  whole = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"
  first, known = jax.process_index() == 0, None
  if first:
    known = _load(whole, name, kind)
  if from_first(np.array(known is not None)):
    return known and known[0]
  here = f"{jax.process_index()}-of-{jax.process_count()}"
  part = whole.with_name(f"{whole.stem}.{here}.npz")
  with shared_errors():
    own = _own_stats(images, extractor, part, name, batch_size, title, kind)
  found = (merge_hosts if kind is FeatureStats else join_hosts)(own)
  with shared_errors():
    if first:
      _save(whole, name, found, images.count)
    with contextlib.suppress(OSError):  # it is of no more use
      part.unlink(missing_ok=True)
  return found if first else None


def _own_stats(
  images: ImageSet,
  extractor: Extractor,
  part: epath.Path,
  name: str,
  batch_size: int,
  title: str,
  kind: type[Kept],
) -> Kept:
  """Computes what is kept of this process's images, every n-th of all.

  Raises:
    ValueError: an image cannot be used, or too many are left out.
  """
  processes = jax.process_count()
  own = range(jax.process_index(), images.count, processes)
  kept = _load(part, name, kind)
  stats, done = kept or (None, 0)
  progress = Progress(
    title, images.count, unit="image", quiet=jax.process_index() > 0
  )
  progress.start(done * processes)
  since = time.monotonic()
  with progress, ThreadPoolExecutor(THREADS, "read") as pool:
    while done < len(own):
      # Chunks are the same whatever the batch size, and so are their sums.
      numbers = own[done : done + CHUNK]
      read = list(pool.map(images.read, numbers))
      chunk = kind.of(*_features(read, extractor, batch_size))
      add = merge if kind is FeatureStats else join
      stats = chunk if stats is None else add([stats, chunk])
      done += len(numbers)
      progress.show(min(done * processes, images.count))
      if done - stats.count > MOST_LEFT_OUT * done:
        raise ValueError(
          f"{title}: {done - stats.count} of {done} images cannot be used,"
          f" expected at most {MOST_LEFT_OUT:.0%}"
        )
      if time.monotonic() - since > KEEP_EVERY:
        _save(part, name, stats, done)
        since = time.monotonic()
  if stats is None:  # fewer images than processes
    dim = extractor.compute(images.read(0)[None]).shape[1]
    stats = kind.of(np.zeros((0, dim)))
  return stats


def _features(
  read: Sequence[np.ndarray | None], extractor: Extractor, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Computes the features of a chunk, batch by batch.

  Returns:
    (features [n, d], mask bool [n], False for images that are left out).
  """
  mask = np.array([image is not None for image in read])
  if not mask.any():
    raise ValueError(f"none of {len(read)} images can be used")
  fill = next(image for image in read if image is not None)
  rows = [fill if image is None else image for image in read]
  # A batch always has one size, so that one program computes all.
  rows += [fill] * (-len(rows) % batch_size)
  found = [
    np.asarray(extractor.compute(np.stack(rows[i : i + batch_size])))
    for i in range(0, len(rows), batch_size)
  ]
  return np.concatenate(found)[: len(read)], mask


def _save(path: epath.Path, name: str, stats: Kept, done: int) -> None:
  """Writes what is kept of the first `done` images."""
  data = io.BytesIO()
  np.savez(data, name=np.array(name), done=done, **vars(stats))
  files.write(path, data.getvalue(), parents=True)


def _load(
  path: epath.Path, name: str, kind: type[Kept]
) -> tuple[Kept, int] | None:
  """Reads (kept, done); None if they are missing, damaged or of others."""
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
      if str(found["name"]) != name:
        return None
      done = int(found["done"])
      if kind is Embeddings:
        kept = Embeddings(found["rows"])
        return (kept, done) if kept.rows.shape[:1] == (done,) else None
      kept = FeatureStats(int(found["count"]), found["mean"], found["scatter"])
      return (kept, done) if kept.scatter.shape == (kept.dim,) * 2 else None
  except Exception:  # stores and damaged files raise many kinds
    return None
