"""Formats of text encoders: config.json, tensor names and vocabularies."""

import dataclasses
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import flax.traverse_util
from absl import logging
from etils import epath

from imagen_jax import files
from imagen_jax.interop import hub
from imagen_jax.interop.tensors import Tensor, check
from imagen_jax.text.settings import Text
from imagen_jax.text.tokenizer import Tokenizer

_MOST = 2**20  # the largest size to accept, four times mT5's table
_ROUNDED = 128  # the most rows by which a table is rounded up


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Describes how config.json states the sizes of a kind of encoder.

  Attributes:
    name: the kind, as in "T5 v1.1".
    types: the values of its model_type.
    keys: the encoder's fields, and their keys there.
    defaults: the values of missing keys.
    fixed: the keys with one value in every encoder of the kind: that value, and
      the default.
    section: the key of the encoder's part in the config of a larger model.
  """

  name: str
  types: tuple[str, ...]
  keys: Mapping[str, str]
  defaults: Mapping[str, int]
  fixed: Mapping[str, tuple[Any, Any]]
  section: str | None = None

  def read(self, path: epath.Path) -> dict[str, int] | None:
    """Reads the sizes of an encoder from the config.json beside its weights.

    Returns:
      The fields of the encoder that the file has; None if there is no
      config.json of this kind.

    Raises:
      ValueError: the file cannot be read, or describes another kind's encoder.
    """
    if path.is_file() and path.name.partition(".")[0] == hub.STEM:
      path = path.parent
    file = path / hub.CONFIG
    if not path.is_dir() or not file.exists():
      return None
    config = files.read_json(file, "config")
    if (
      not isinstance(config, dict) or config.get("model_type") not in self.types
    ):
      return None
    part = config.get(self.section)
    config = part if isinstance(part, dict) else config
    for key, (value, default) in self.fixed.items():
      if config.get(key, default) != value:
        raise ValueError(
          f"{file} has {key} {reprlib.repr(config.get(key, default))}, expected"
          f" {value!r}, as {self.name} has it"
        )
    sizes = {}
    for key, name in self.keys.items():
      size = config.get(name, self.defaults.get(name))
      if size is None:
        continue
      if type(size) is not int or not 1 <= size <= _MOST:
        raise ValueError(
          f"{file} has {name} {reprlib.repr(size)}, expected a whole number of "
          f"1 to {_MOST}"
        )
      sizes[key] = size
    return sizes

  def check(self, path: epath.Path, encoder: Any) -> None:
    """Raises ValueError if config.json has other sizes than an encoder."""
    found = self.read(path) or {}
    differ = {k: n for k, n in found.items() if getattr(encoder, k) != n}
    if differ:
      ours = ", ".join(f"{key} {getattr(encoder, key)}" for key in differ)
      theirs = ", ".join(f"{self.keys[key]} {n}" for key, n in differ.items())
      raise ValueError(
        f"config text.encoder has {ours}, but {hub.CONFIG} of weights {path} "
        f"has {theirs}"
      )


def of_torch(
  path: epath.Path,
  found: Mapping[str, Tensor],
  like: Any,
  names: Mapping[str, str],
) -> dict[str, Tensor]:
  """Checks tensors in torch's layout, and names them by our paths.

  Args:
    path: the file, for messages.
    found: the tensors by Hugging Face's names, without unused ones.
    like: the shapes of the encoder's parameters.
    names: Hugging Face's names of our paths. Of a path layers_I/REST, it holds
      the name of layers_{}/REST, in which {} stands for I.

  Raises:
    ValueError: the tensors are not those of the encoder.
  """
  shapes = flax.traverse_util.flatten_dict(like, sep="/")
  turned = lambda name: name.endswith("/kernel")
  theirs = {name: _name(name, names) for name in shapes}
  check(
    path,
    found,
    {
      theirs[name]: leaf.shape[::-1] if turned(name) else leaf.shape
      for name, leaf in shapes.items()
    },
  )
  return {
    name: found[other].T if turned(name) else found[other]
    for name, other in theirs.items()
  }


def _name(path: str, names: Mapping[str, str]) -> str:
  """Returns Hugging Face's name of our path."""
  layer, _, rest = path.partition("/")
  if not layer.startswith("layers_"):
    return names[path]
  return names["layers_{}/" + rest].format(layer.removeprefix("layers_"))


def both(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
  """Names the kernels (or scales) and biases of layers in torch's way."""
  found = {}
  for ours, theirs in pairs:
    weight = "scale" if ours.endswith("norm") else "kernel"
    found[f"{ours}/{weight}"] = f"{theirs}.weight"
    found[f"{ours}/bias"] = f"{theirs}.bias"
  return found


def check_vocabulary(
  text: Text, tokenizer: Tokenizer, published: Mapping[int, str]
) -> None:
  """Checks a vocabulary of an encoder whose weights record none.

  A warning is logged if it has as many pieces as a published one, but others.

  Args:
    text: the encoder with the paths of its files.
    tokenizer: the vocabulary.
    published: checksums of the pieces of published vocabularies by their
      number, as in WordPieces.

  Raises:
    ValueError: the vocabulary has another number of pieces than the encoder.
  """
  rows, pieces = text.encoder.vocab_size, tokenizer.vocab_size
  if not rows - _ROUNDED < pieces <= rows:
    raise ValueError(
      f"vocabulary {text.vocabulary} has {pieces} pieces, expected the {rows} "
      "that the text encoder embeds"
    )
  if published.get(pieces, tokenizer.pieces_sha256) != tokenizer.pieces_sha256:
    logging.warning(
      "vocabulary %s is not the published one; weights %s do not record theirs",
      text.vocabulary,
      text.weights,
    )
