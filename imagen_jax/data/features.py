"""Features of a TFDS dataset: found by their paths, checked and parsed.

A path names a feature within others, as "captions/text" does in coco_captions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from imagen_jax import files
from imagen_jax.data.captions import TEMPLATE

_Feature = tfds.features.FeatureConnector


class Parser:
  """Parses a record to dict(image=bytes or array, caption=str or list, ...).

  Only the features that are named are decoded. Text is str, and a class is its
  name, with blanks for underscores.

  Args:
    features: the features of the dataset.
    paths: the feature's path for each key of the record.
    template: the caption, with "{}" where the feature's text belongs.
  """

  def __init__(
    self,
    features: tfds.features.FeaturesDict,
    paths: Mapping[str, str],
    template: str = TEMPLATE,
  ):
    self._names = {key: _names(features, path) for key, path in paths.items()}
    self._template = template
    self._decoders, self._classes, wanted = {}, {}, {}
    for key, names in self._names.items():
      _insert(wanted, names, {})
      leaf, _ = _inner(_at(features, names))
      if isinstance(leaf, tfds.features.Image):
        # An encoded image stays as it is.
        _insert(self._decoders, names, tfds.decode.SkipDecoding())
      if isinstance(leaf, tfds.features.ClassLabel):
        self._classes[key] = leaf.names
    self._features = _only(features, wanted)

  def __call__(self, data: bytes) -> dict[str, Any]:
    """Parses the untrusted bytes of a record; ValueError if they are bad."""
    try:
      record = self._features.deserialize_example_np(
        data, decoders=self._decoders
      )
    except Exception as error:  # of any type, from protobuf, numpy or TFDS
      said = files.reason(error)
      raise ValueError(f"it cannot be parsed ({said})") from error
    found = {key: _at(record, names) for key, names in self._names.items()}
    for key, value in found.items():
      if key in self._classes:
        value = _class_names(key, value, self._classes[key])
      if key != "image":
        found[key] = _as_text(key, value)
    if self._template != TEMPLATE and "caption" in found:
      found["caption"] = self._filled(found["caption"])
    return found

  def _filled(self, caption: Any) -> Any:
    """Puts one caption or each of several into the template."""
    if isinstance(caption, list):
      return [self._filled(each) for each in caption]
    # A blank caption stays one, which makes the record a bad one.
    text = caption.strip()
    return self._template.replace(TEMPLATE, text) if text else caption


def check_feature(
  name: str, key: str, path: str, features: _Feature | None, template: str
) -> None:
  """Checks that a dataset has a feature that can be read as a key.

  Args:
    name: the dataset's name, for messages.
    key: image, caption or another key of the records.
    path: the feature's path.
    features: the features of the dataset.
    template: as for Parser.

  Raises:
    ValueError: the feature is missing, or has another type.
  """
  names = _names(features, path)
  if names is None:
    raise ValueError(
      f"dataset {name!r} has no feature {path!r}, only"
      f" {list_names(_leaf_paths(features))}"
    )
  found, outer = _at(features, names), 0
  for i in range(len(names)):
    outer += _inner(_at(features, names[:i]))[1]
  info = found.get_tensor_info()
  shape, kind = None, ""
  if not isinstance(info, dict):
    shape, dtype = (None,) * outer + info.shape, np.dtype(info.np_dtype)
    # TFDS gives text and bytes the dtype object.
    kind = "text" if dtype.kind in "OSU" else dtype.name
  if key != "image":
    expected = "text, or a list of texts"
    leaf, _ = _inner(found)
    if key == "caption" and isinstance(leaf, tfds.features.ClassLabel):
      good = len(shape) <= 1 and _has_names(leaf, template)
      expected += ", or classes with names or with a template"
    else:
      good = kind == "text" and len(shape) <= (key == "caption")
  elif isinstance(found, tfds.features.Image):
    expected, good = (
      "uint8 or uint16",
      kind in ("uint8", "uint16") and not outer,
    )
  else:  # an image that the dataset's author encoded, or an array
    expected = "an image of uint8 or uint16"
    good = (kind == "text" and shape == ()) or (
      kind == "uint8" and len(shape) in (2, 3) and not outer
    )
  if not good:
    shown = f" of {kind} {shape}" if kind else ""
    raise ValueError(
      f"feature {path!r} of dataset {name!r} is {type(found).__name__}"
      f"{shown}, expected {expected}"
    )


def list_names(names: Iterable[str]) -> str:
  """Joins up to 20 names of a dataset, for a message."""
  names = [
    name if name.replace("/", "").isidentifier() else files.quote(name, 40)
    for name in names
  ]
  return ", ".join(names[:20]) + ", ..." * (len(names) > 20) or "none"


def _has_names(leaf: tfds.features.ClassLabel, template: str) -> bool:
  """Tests whether captions of classes have words, not only numbers."""
  numbers = [str(i) for i in range(leaf.num_classes or 0)]
  return template != TEMPLATE or leaf.names != numbers


def _inner(feature: _Feature) -> tuple[_Feature, int]:
  """Returns the feature within sequences, and the number of sequences."""
  count = 0
  while isinstance(feature, tfds.features.Sequence):
    feature, count = feature.feature, count + 1
  return feature, count


def _names(features: _Feature | None, path: str) -> tuple[str, ...] | None:
  """Splits a path into names of features, which may contain slashes.

  Returns:
    The names from the outermost feature on; None if there is no such feature.
  """
  features, _ = _inner(features)
  if not isinstance(features, tfds.features.FeaturesDict):
    return None
  if path in features:
    return (path,)
  for name in features:
    if path.startswith(f"{name}/"):
      rest = _names(features[name], path.removeprefix(f"{name}/"))
      if rest is not None:
        return (name, *rest)
  return None


def _leaf_paths(features: _Feature | None, prefix: str = "") -> Iterator[str]:
  """Yields the paths of all features that hold no others, sorted."""
  features, _ = _inner(features)
  if isinstance(features, tfds.features.FeaturesDict):
    for name in sorted(features):
      yield from _leaf_paths(features[name], f"{prefix}/{name}")
  elif prefix:
    yield prefix[1:]


def _insert(tree: dict[str, Any], names: Sequence[str], value: Any) -> None:
  """Sets a value in nested dicts, unless it is set."""
  *parents, last = names
  for name in parents:
    tree = tree.setdefault(name, {})
  tree.setdefault(last, value)


def _only(feature: _Feature, wanted: Mapping[str, Any]) -> _Feature:
  """Returns a feature with the parts that a tree of names wants."""
  if not wanted:
    return feature
  if isinstance(feature, tfds.features.Sequence):
    return tfds.features.Sequence(_only(feature.feature, wanted))
  return tfds.features.FeaturesDict(
    {name: _only(feature[name], rest) for name, rest in wanted.items()}
  )


def _at(value: Any, names: Sequence[str]) -> Any:
  """Returns what features or a parsed record hold under nested names."""
  for name in names:
    value = value[name]
  return value


def _class_names(key: str, value: Any, names: list[str]) -> Any:
  """Returns the names of classes; ValueError for a label that has none."""
  if isinstance(value, np.ndarray | list) and np.ndim(value):
    return [_class_names(key, each, names) for each in value]
  label = int(value)
  if not 0 <= label < len(names):
    raise ValueError(
      f"{key} is the label {label}, expected 0 to {len(names) - 1}"
    )
  return names[label].replace("_", " ")


def _as_text(name: str, value: Any) -> str | list[str]:
  """Decodes bytes, or arrays and lists of bytes; ValueError if not UTF-8."""
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, list):
    return [_as_text(name, each) for each in value]
  if not isinstance(value, bytes):
    return value
  try:
    return value.decode()
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} is not UTF-8") from error
