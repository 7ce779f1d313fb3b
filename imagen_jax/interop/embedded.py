"""Stored embeddings of a text encoder: which encoder made them."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from imagen_jax import files
from imagen_jax.data.embeddings import (
  Embeddings,
  Plan,
  different,
  keys_path,
  read_plan,
)
from imagen_jax.interop import published
from imagen_jax.parallel.sharding import Placement
from imagen_jax.text.settings import StoredText, Text

# Fields of encoders that change no output: how layers are compiled, and how a
# dense layer is made, which text.int8 states.
_FREE = ("parent", "name", "scan", "dense")
_BLOCK, _BLOCKS, _FILES = 2**16, 16, 64  # bytes, and what is read of a sample


def describe(text: Text) -> dict[str, Any]:
  """Returns the settings of an encoder that determine its embeddings."""
  net = text.encoder
  sizes = {
    f"encoder.{field.name}": getattr(net, field.name)
    for field in dataclasses.fields(net)
    if field.name not in _FREE
  }
  return sizes | {
    "kind": type(net).__name__,
    "encoder.dtype": jnp.dtype(net.dtype).name,
    "length": text.length,
    "lowercase": text.lowercase,
    "int8": text.int8,
    "attend_padding": text.attend_padding,
  }


def weights_sha256(params: Any) -> str:
  """Computes a checksum of weights, which does not depend on their file."""
  digest = hashlib.sha256()
  flat = flax.traverse_util.flatten_dict(params, sep="/")
  for name in sorted(flat):
    value = np.asarray(flat[name])
    digest.update(f"{name} {value.dtype} {value.shape}\n".encode())
    digest.update(np.ascontiguousarray(value).view(np.uint8).data)
  return digest.hexdigest()


def notes(text: Text) -> dict[str, str | None]:
  """Describes an encoder's files, by which another run knows them again."""
  return {
    "weights": text.weights,
    "weights_sample": sample(text.weights, fetch=True),
    "vocabulary": text.vocabulary,
  }


def check(text: StoredText) -> Plan:
  """Checks that a folder has finished embeddings of a config's encoder.

  The encoder's files are read in part, if they are on a local disk. If they are
  not, their names are compared.

  Returns:
    The folder's plan.

  Raises:
    ValueError: the folder is unfinished, or another encoder made it.
  """
  plan, folder = read_plan(text.folder), epath.Path(files.expand(text.folder))
  what = f"data.embeddings {text.folder}"
  ours = {k: _as_json(v) for k, v in describe(text.text).items()}
  made = {key: plan.encoder.get(key) for key in ours}
  if changed := different(made, ours).split(", ")[0]:
    raise ValueError(
      f"{what} were made with text.{changed} {made[changed]!r}, expected"
      f" {ours[changed]!r} as in the config: run embed into another folder"
    )
  for name in ("weights", "vocabulary"):
    if not _is_same(text.text, plan, name):
      raise ValueError(
        f"{what} were made with other {name}, {plan.notes.get(name)}, than"
        f" text.{name} {getattr(text.text, name)}: run embed into another"
        " folder"
      )
  there = {path.name for path in folder.iterdir()}
  total = len(plan.shards)
  lacking = [
    i for i in range(total) if keys_path(folder, plan, i).name not in there
  ]
  if lacking:
    raise ValueError(
      f"{what} lack {len(lacking)} of {total} shards, expected all: run embed"
      " again to finish them"
    )
  return plan


def open_embeddings(text: StoredText) -> Embeddings:
  """Opens the embeddings of a config that has been checked."""
  return Embeddings(text.folder, padding=text.text.attend_padding)


def load_null(text: StoredText, placement: Placement | None) -> Any:
  """Loads the null text, if it is not zeros, onto devices."""
  if text.text.null == "zeros":
    return {}
  tokens, mask = open_embeddings(text).null()
  found = {"null_tokens": tokens, "null_mask": mask}
  return jax.device_put(found) if placement is None else placement.put(found)


def sample(path: str, *, fetch: bool = False) -> str | None:
  """Computes a checksum of parts of weights on a local disk.

  It reads a MiB of a file. Other weights of equal sizes differ there.

  Args:
    path: the weights, as in a config.
    fetch: whether weights on the Hub are fetched if they are not there.

  Returns:
    The checksum; None if there are no such files.
  """
  if _is_elsewhere(path) and not (fetch and path.startswith("hf://")):
    return None
  where = pathlib.Path(os.fspath(published.resolve(path)))
  found = [where] if where.is_file() else sorted(where.rglob("*"))
  found = [file for file in found if file.is_file()]
  if not found:
    return None
  digest = hashlib.sha256()
  for file in found[:: -(-len(found) // _FILES)]:
    size = file.stat().st_size
    digest.update(f"{size}\n".encode())
    with open(file, "rb") as data:
      for i in range(_BLOCKS):
        data.seek(i * max(0, size - _BLOCK) // (_BLOCKS - 1))
        digest.update(data.read(_BLOCK))
  return digest.hexdigest()


def _is_same(text: Text, plan: Plan, name: str) -> bool:
  """Compares a file's contents with the plan; its name where it is absent."""
  path = getattr(text, name)
  if name == "weights":
    found, made = sample(path), plan.notes.get("weights_sample")
  else:
    found, made = _sha256(path), plan.encoder.get("vocabulary")
  if found is not None and made is not None:
    return found == made
  return os.path.basename(path) == os.path.basename(str(plan.notes.get(name)))


def _sha256(path: str) -> str | None:
  """Computes the checksum of a local vocabulary; None if it is not there."""
  if _is_elsewhere(path):
    return None
  where = published.resolve(path)
  if not where.is_file():
    return None
  return hashlib.sha256(where.read_bytes()).hexdigest()


def _is_elsewhere(path: str) -> bool:
  """Tests whether a path is of a bucket or the Hub."""
  return files.is_remote(path) and not path.startswith(published.SCHEME)


def _as_json(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


def encoder_of(text: Text, params: Any, vocabulary: str) -> Mapping[str, Any]:
  """Describes an encoder with its files, for a plan.

  Args:
    text: its settings.
    params: its weights.
    vocabulary: the fingerprint of its vocabulary.
  """
  return {k: _as_json(v) for k, v in describe(text).items()} | {
    "weights": weights_sha256(params),
    "vocabulary": vocabulary,
  }
