"""Identities of weights and vocabularies, by content rather than by path."""

import functools
import hashlib
import os
import re
import zlib
from collections.abc import Iterator

from etils import epath

from imagen_jax import files
from imagen_jax.checkpoints import manager
from imagen_jax.interop import published

_PARTS = (".safetensors", ".json")  # of a folder of published weights
_IS_DIGEST = re.compile("[0-9a-f]{64}")


def identity(path: str) -> str:
  """Computes a text that identifies the contents of a path.

  For a file it is a checksum of the bytes. For a training run it is the step
  and a checksum of the newest checkpoint. For a folder of published weights it
  is a checksum of the files. The same contents elsewhere have the same
  identity.

  Args:
    path: weights or a vocabulary, as in a config.

  Raises:
    ValueError: there are no weights at the path, or a file cannot be read.
  """
  where = published.resolve(path)
  if not where.exists():
    raise ValueError(f"{path} is not there, expected weights or a vocabulary")
  try:
    if not where.is_dir():
      return _of_file(where)
    if manager.directory(str(where)).is_dir():
      return _of_run(str(where))
    return _of_folder(where)
  except OSError as error:
    raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def _of_file(path: epath.Path) -> str:
  """Computes the SHA-256 of a file."""
  # The Hub's cache holds links to files that are named by their SHA-256.
  if _IS_DIGEST.fullmatch(name := os.path.basename(os.path.realpath(path))):
    return name
  if files.is_remote(path):
    return _sha256(path)
  stat = os.stat(path)
  return _sha256_once(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256_once(path: epath.Path, *state: int) -> str:
  """Computes the SHA-256 of a local file once for each state of the file.

  Sampling asks before and after it reads weights, which may be tens of GB.
  """
  del state
  return _sha256(path)


def _sha256(path: epath.Path) -> str:
  with path.open("rb") as file:
    digest = hashlib.sha256()
    while block := file.read(2**20):
      digest.update(block)
  return digest.hexdigest()


def _of_run(workdir: str) -> str:
  """Returns the step of a run's newest checkpoint, and a checksum."""
  step, path = manager.newest(workdir)
  sums = path / "checksums" / "metadata"
  if not sums.exists():  # written by an older version
    return f"step {step}"
  return f"step {step}, checksum {zlib.crc32(sums.read_bytes()):08x}"


def _files(folder: epath.Path) -> Iterator[epath.Path]:
  """Yields the files of a folder and of its subfolders."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def _of_folder(folder: epath.Path) -> str:
  """Computes the SHA-256 of the names and contents of a folder's files.

  t5x arrays have thousands of files, so their sizes and modification times
  replace the contents.
  """
  digest = hashlib.sha256()
  for path in sorted(_files(folder)):
    if path.suffix in _PARTS:
      found = _of_file(path)
    else:
      stat = path.stat()
      found = f"{stat.length} {stat.mtime}"
    digest.update(f"{path.relative_to(folder)} {found}\n".encode())
  return digest.hexdigest()
