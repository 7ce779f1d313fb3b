"""Sources opened by path: images, tars, parquet files or a TFDS dataset."""

import os
from collections.abc import Iterator
from typing import Protocol

from etils import epath

from imagen_jax import files
from imagen_jax.data.captions import TEMPLATE
from imagen_jax.data.prepare.folder import IMAGES, METADATA, Folder
from imagen_jax.data.prepare.parquet import Parquet
from imagen_jax.data.prepare.rows import Record
from imagen_jax.data.prepare.tfds_set import TfdsSet
from imagen_jax.data.prepare.webdataset import WebDataset

INFO = "dataset_info.json"  # what TFDS writes last
FORMATS = ("auto", "folder", "webdataset", "parquet", "tfds")


class Source(Protocol):
  """Reads records in parts that follow from the files alone."""

  parts: list[str]

  def read(self, part: int) -> Iterator[Record]:
    """Reads the records of a part, in a fixed order."""


def open_source(
  path: str | os.PathLike,
  kind: str = "auto",
  *,
  per_part: int,
  image: str | None = None,
  caption: str | None = None,
  split: str = "train",
  template: str = TEMPLATE,
) -> Source:
  """Lists the files of a source.

  Args:
    path: a folder, a tar or a parquet file, on a disk or of a store.
    kind: one of FORMATS; auto finds the format by the files' names.
    per_part: the number of records in a part of a folder or parquet file.
    image: the column of images in parquet files, or the feature of a TFDS
      dataset; None finds it.
    caption: the column or feature of captions; None finds it.
    split: the split of a TFDS dataset.
    template: the caption of a TFDS dataset, with "{}" where the feature's text
      belongs.

  Raises:
    ValueError: there is no such path, or nothing in it can be read.
  """
  path = epath.Path(files.expand(path))
  try:
    if path.is_dir():
      names = sorted(_names(path))
    elif path.exists():
      path, names = path.parent, [path.name]
    else:
      raise ValueError(f"source {path} does not exist")
  except OSError as error:
    raise ValueError(
      f"source {error.filename or path} cannot be read: {files.reason(error)}"
    ) from error
  kind = _kind(names) if kind == "auto" else kind
  if kind == "tfds":
    if INFO not in names:
      raise ValueError(f"source {path} has no {INFO}, expected a TFDS dataset")
    paths = image or "image", caption or "caption"
    return TfdsSet(path, split, *paths, template)
  ending = {"webdataset": ".tar", "parquet": ".parquet"}.get(kind)
  chosen = [name for name in names if name.endswith(ending or "")]
  if kind is None or not chosen:
    raise ValueError(
      f"source {path} has no {ending or 'images, .tar or .parquet'} files"
    )
  if kind == "webdataset":
    source = WebDataset(path, chosen, caption)
  elif kind == "parquet":
    source = Parquet(path, chosen, per_part, image, caption)
  else:
    source = Folder(path, names, per_part, caption)
  if not source.parts:
    raise ValueError(f"source {path} has no images and no captions")
  return source


def _names(folder: epath.Path) -> Iterator[str]:
  """Yields the files of a folder and its folders, without hidden ones.

  Links to folders are not followed, for they may lead in circles.
  """

  def fail(error: OSError) -> None:
    raise error

  # fsspec's walk leaves out the scheme.
  base = os.fspath(folder).rpartition("://")[2].rstrip("/")
  for root, folders, names in folder.walk(on_error=fail):
    folders[:] = [name for name in folders if not name.startswith(".")]
    here = os.fspath(root).rpartition("://")[2].removeprefix(base).strip("/")
    for name in names:
      if not name.startswith("."):
        yield f"{here}/{name}" if here else name


def _kind(names: list[str]) -> str | None:
  """Returns the format of a source with these files; None if it has none."""
  if INFO in names:
    return "tfds"
  if any(name.endswith(".tar") for name in names):
    return "webdataset"
  bases = {name.rpartition("/")[2] for name in names}
  if bases & {*METADATA} or any(b.lower().endswith(IMAGES) for b in bases):
    return "folder"
  if any(name.endswith(".parquet") for name in names):
    return "parquet"
  return None
