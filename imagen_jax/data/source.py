"""Datasets opened by their TFDS names, without TensorFlow."""

import contextlib
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tensorflow_datasets.core import naming

from imagen_jax import files
from imagen_jax.data import prepared
from imagen_jax.data.captions import TEMPLATE
from imagen_jax.data.features import Parser, check_feature, list_names
from imagen_jax.data.records import Records

# Imported to register the dataset with TFDS.
from imagen_jax.shapes import captioned_shapes_dataset_builder  # noqa: F401
from imagen_jax.shapes.examples import Endless
from imagen_jax.shapes.scenes import SPLITS

DATA_DIR = "~/tensorflow_datasets"  # where TFDS prepares sets by default
ENDLESS = "captioned_shapes/endless"
FORMAT = "array_record"  # the TFDS format with random access to records


def load_source(
  name: str,
  split: str | Sequence[str],
  data_dir: str | os.PathLike[str],
  *,
  features: Sequence[str] = ("image", "caption"),
  paths: Mapping[str, str] = types.MappingProxyType({}),
  template: str = TEMPLATE,
  key: str = "split",
) -> Sequence[Mapping]:
  """Opens the records of a split of a TFDS dataset.

  The dataset is prepared under `data_dir` on first use, and later only read.
  "captioned_shapes/endless" is never prepared: its examples are drawn when they
  are read. captioned_shapes holds the first of them.

  Args:
    name: the TFDS name, such as "captioned_shapes" or
      "captioned_shapes/tiny:1.0.0", or the folder of a prepared dataset, such
      as "/data/mine", "./mine" or "gs://bucket/mine".
    split: a split in TFDS syntax, such as "train" or "train[:10%]"; or several,
      of which the first that the dataset has is read.
    data_dir: the folder of prepared datasets, which may begin with ~.
    features: the keys of the records. Only their features are decoded.
    paths: the features of keys that are stored under other names, such as
      {"caption": "captions/text"}.
    template: the caption, with "{}" where the feature's text belongs, such as
      "a photo of a {}" for names of classes.
    key: the setting or flag that names the split, for messages.

  Returns:
    The records, at least one.

  Raises:
    ValueError: the dataset is unknown, invalid or cannot be prepared; the
      split is unknown or empty; or a feature is missing or cannot be used.
  """
  if name == ENDLESS:
    if not (known := [each for each in _as_tuple(split) if each in SPLITS]):
      raise ValueError(
        f"{key} is {split!r}, expected one of {SPLITS} for {name!r}"
      )
    return Endless(known[0])
  if os.fspath(data_dir) == DATA_DIR:
    data_dir = os.environ.get("TFDS_DATA_DIR") or data_dir  # as TFDS does
  data_dir = files.expand(data_dir)
  builder = _open(name, data_dir)
  paths = {feature: paths.get(feature, feature) for feature in features}
  for feature, path in paths.items():  # before anything is downloaded
    check_feature(name, feature, path, builder.info.features, template)
  if not _is_prepared(builder):
    _prepare(name, data_dir, builder.data_dir)
    builder = _open(name, data_dir)
  split = choose_split(name, _as_tuple(split), key, builder.info.splits)
  parse = Parser(builder.info.features, paths, template)
  records = Records(builder, split, parse)
  if not len(records):
    raise ValueError(f"{key} is {split!r}, in which {name!r} has no records")
  return records


def _open(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
  """Opens the builder of a dataset, prepared or not."""
  if (folder := _prepared_folder(name)) is not None:
    builder = open_folder(name, folder)
    _use_format(name, builder)
    return builder
  try:
    parsed, settings = naming.parse_builder_name_kwargs(name)
  except ValueError as error:
    raise ValueError(
      f"dataset {name!r} is not a name, expected NAME[/CONFIG][:VERSION]"
    ) from error
  if odd := settings.keys() - {"config", "version"}:
    raise ValueError(f"dataset {name!r}: {', '.join(odd)} is no part of a name")
  prepared.check_folder(epath.Path(data_dir) / parsed.name)
  with _as_sentence(f"dataset {name!r} cannot be opened"):
    try:
      builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
      raise ValueError(
        f"it is not known to TFDS, nor prepared in {data_dir}"
      ) from error
    except ValueError as error:
      _check_config(parsed.name, settings.get("config"), error)
      raise
    if not _is_prepared(builder):
      return tfds.builder(name, data_dir=data_dir, file_format=FORMAT)
  _use_format(name, builder)
  return builder


def _prepared_folder(name: str) -> epath.Path | None:
  """Returns the folder that a name is the path of; None if it is no path.

  A name that is no plain path may be TFDS's, so the folder decides.

  Raises:
    ValueError: the name is a path, of a folder without a prepared dataset.
  """
  plain = name.startswith(("/", "~", "./", "../")) or files.is_remote(name)
  folder = epath.Path(files.expand(name)) if plain else epath.Path(name)
  if name and (folder / "dataset_info.json").exists():
    return folder
  if plain:
    raise ValueError(
      f"dataset {name!r} has no dataset_info.json, expected a folder that"
      " prepare has finished"
    )
  return None


def open_folder(name: str, folder: epath.Path) -> tfds.core.DatasetBuilder:
  """Opens a prepared dataset by its folder, in any format.

  Raises:
    ValueError: its description is damaged, or names code outside TFDS.
  """
  prepared.check_version(folder)
  with _as_sentence(f"dataset {name!r} cannot be opened"):
    return tfds.builder_from_directory(folder)


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Tests whether a builder's folder exists; ValueError if it is incomplete."""
  folder = epath.Path(builder.data_dir)
  if (folder / "dataset_info.json").exists():
    return True
  if folder.exists():
    raise ValueError(
      f"{folder} has no dataset_info.json: remove the folder, and it is"
      " prepared again"
    )
  return False


def _check_config(name: str, config: str | None, error: ValueError) -> None:
  """Raises ValueError, naming the known configs, for an unknown config."""
  with contextlib.suppress(tfds.core.DatasetNotFoundError):
    known = tfds.builder_cls(name).builder_configs
    if config and config not in known:
      raise ValueError(
        f"it has no config {config!r}, only {list_names(known)}"
      ) from error


def _use_format(name: str, builder: tfds.core.DatasetBuilder) -> None:
  """Selects FORMAT for a prepared dataset; ValueError if it has none."""
  info = builder.info
  found = [kind.value for kind in info.available_file_formats()]
  if FORMAT not in found:
    raise ValueError(
      f"dataset {name!r} is stored as {' and '.join(found)}, expected {FORMAT}:"
      " convert it once by python -m imagen_jax.prepare"
      f" --source={builder.data_dir} --output=DIR"
    )
  if info.file_format.value != FORMAT:  # stored in both formats
    info.set_file_format(FORMAT, override=True, override_if_initialized=True)


def _prepare(name: str, data_dir: str, folder: str) -> None:
  """Prepares a dataset, or waits for another process to prepare it."""
  ready = lambda: (epath.Path(folder) / "dataset_info.json").exists()
  with (
    _as_sentence(f"dataset {name!r} cannot be prepared"),
    prepared.alone(folder),
  ):
    if ready():
      return
    logging.info("preparing %s in %s, once", name, folder)
    try:
      tfds.builder(
        name, data_dir=data_dir, file_format=FORMAT
      ).download_and_prepare()
    except FileExistsError:  # prepared by a process that could not lock it
      if not ready():
        raise


@contextlib.contextmanager
def _as_sentence(what: str) -> Iterator[None]:
  """Converts any error of the block to a ValueError of one sentence."""
  try:
    yield
  except Exception as error:  # TFDS and the builders raise many kinds
    if isinstance(error, ImportError) and "tensorflow" in str(error):
      said = (
        "that needs TensorFlow (pip install tensorflow), though reading a"
        " prepared one does not"
      )
    else:
      said = _reason(error)
    raise ValueError(f"{what}: {said}") from error


def _reason(error: Exception) -> str:
  """Returns a TFDS error as one line, without the arguments of the call."""
  if isinstance(error, OSError) and error.strerror:
    where = f"{error.filename}: " if error.filename else ""
    return where + files.reason(error)
  text = re.sub(r'^Failed to construct .*?\}": ', "", str(error), flags=re.S)
  text = " ".join(text.split()) or type(error).__name__
  limit = 500
  return (
    text
    if text.isprintable() and len(text) <= limit
    else files.quote(text, limit)
  )


def _as_tuple(split: str | Sequence[str]) -> tuple[str, ...]:
  """Returns one split or several as a tuple."""
  return (split,) if isinstance(split, str) else tuple(split)


def choose_split(
  name: str, wanted: tuple[str, ...], key: str, splits: Mapping
) -> str:
  """Returns the first of several splits, or parts of splits, that exists.

  Args:
    name: the dataset's name, for messages.
    wanted: the splits.
    key: the setting or flag that names them, for messages.
    splits: the dataset's splits.

  Raises:
    ValueError: none exists, or the first is no valid part of a split.
  """
  known = [
    each
    for each in wanted
    if each in splits or each == "all" or not re.fullmatch(r"\w+", each)
  ]
  if not known:
    raise ValueError(
      f"{name} has no split {' or '.join(map(repr, wanted))}, only"
      f" {list_names(splits)}: change {key}"
    )
  split = known[0]
  with _as_sentence(f"{key} is {files.quote(split)}, which cannot be read"):
    splits[split].file_instructions  # noqa: B018
  return split
