"""Text embeddings of captions that the verb embed has stored.

A folder holds ArrayRecord files with a record for each caption, trimmed to its
tokens. A key identifies a record: the checksum of the encoder and the caption.
So a caption or an encoder that has changed is noticed, whatever the order of
the dataset is. Reading needs 16 bytes of memory for each caption.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.dtypes import bfloat16

from imagen_jax import files
from imagen_jax.data.prepare.shards import writer
from imagen_jax.data.records import OpenFiles

NAME = "embeddings"  # in the names of files
PLAN = "embeddings.json"
NULL = "null.embedding"  # the file of the empty prompt
STORAGES = ("bfloat16", "int8")
_KEY = 32  # bytes, of SHA-256
_LARGEST = 127
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Plan:
  """Describes what a folder of embeddings holds.

  Attributes:
    encoder: what determines an embedding: the encoder's settings, and checksums
      of its weights and of its vocabulary.
    storage: one of STORAGES. int8 has one scale per token.
    length: the number of tokens of a batch's rows.
    dim: the width of a token.
    per_shard: the records of the dataset that make a shard.
    sources: what was embedded: descriptions of datasets, and their numbers of
      records.
    notes: what does not change an embedding, such as the names of files.
  """

  encoder: Mapping[str, Any]
  storage: str
  length: int
  dim: int
  per_shard: int
  sources: tuple[tuple[str, int], ...]
  notes: Mapping[str, Any]

  @property
  def shards(self) -> list[tuple[int, range]]:
    """The source and the records of each shard."""
    return [
      (i, range(start, min(start + self.per_shard, count)))
      for i, (_, count) in enumerate(self.sources)
      for start in range(0, count, self.per_shard)
    ]

  def key(self, caption: str) -> bytes:
    """Returns the key of a caption."""
    return hashlib.sha256(self._encoder + caption.encode()).digest()

  @functools.cached_property
  def _encoder(self) -> bytes:
    return json.dumps(self.encoder, sort_keys=True).encode() + b"\n"

  def encode(self, tokens: np.ndarray) -> bytes:
    """Stores tokens float32 [n, dim]."""
    if self.storage == "bfloat16":
      return tokens.astype(bfloat16).tobytes()
    scale = np.abs(tokens).max(1, keepdims=True) / _LARGEST
    scale = np.where(scale > 0, scale, np.float32(1))
    values = np.rint(tokens / scale).astype(np.int8)
    return scale.astype("<f4").tobytes() + values.tobytes()

  def decode(self, data: bytes) -> np.ndarray:
    """Returns stored tokens, bfloat16 or float32 [n, dim].

    Raises:
      ValueError: the data have another size than tokens have.
    """
    size = 2 * self.dim if self.storage == "bfloat16" else 4 + self.dim
    count, rest = divmod(len(data), size)
    if rest or not 1 <= count <= self.length:
      raise ValueError(
        f"an embedding has {len(data)} bytes, expected {size} for each of 1 to"
        f" {self.length} tokens"
      )
    if self.storage == "bfloat16":
      return np.frombuffer(data, bfloat16).reshape(count, self.dim)
    scale = np.frombuffer(data, "<f4", count)[:, None]
    values = np.frombuffer(data, np.int8, offset=4 * count)
    return values.reshape(count, self.dim) * scale

  def to_json(self) -> str:
    """Returns the plan as it is stored."""
    return json.dumps({"version": _VERSION} | dataclasses.asdict(self))


def read_plan(folder: str | os.PathLike) -> Plan:
  """Reads the plan of a folder.

  Raises:
    ValueError: the folder has none, or it is damaged.
  """
  path = epath.Path(files.expand(folder)) / PLAN
  if not path.exists():
    raise ValueError(
      f"embeddings {folder} have no {PLAN}, expected a folder that embed made"
    )
  value = files.read_json(path, "plan of embeddings")
  try:
    assert value.pop("version") == _VERSION
    value["sources"] = tuple(tuple(source) for source in value["sources"])
    plan = Plan(**value)
    counts = [count for _, count in plan.sources]
    sizes = (plan.length, plan.dim, plan.per_shard, *counts)
    assert all(type(size) is int and size > 0 for size in sizes)
    assert plan.storage in STORAGES and isinstance(plan.encoder, dict)
    assert isinstance(plan.notes, dict)
  except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
    raise ValueError(
      f"plan of embeddings {path} is damaged, or of another version of this"
      " package"
    ) from None
  return plan


def keep_plan(plan: Plan, folder: epath.Path) -> None:
  """Stores a plan in a folder, or checks that it has the same one.

  Raises:
    ValueError: the folder has another plan.
  """
  path = folder / PLAN
  if not path.exists():
    files.write(path, plan.to_json(), parents=True)
    return
  old, new = read_plan(folder), json.loads(plan.to_json())
  old = json.loads(old.to_json())
  changed = [k for k in new if k != "notes" and old.get(k) != new[k]]
  if changed:
    names = {"encoder": different(old["encoder"], new["encoder"]),
             "sources": "records of the dataset"}  # fmt: skip
    what = " and ".join(dict.fromkeys(names.get(key, key) for key in changed))
    raise ValueError(
      f"output {folder} was begun with other {what}, expected the same, or"
      " another output"
    )


def different(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
  """Names the settings of two encoders that differ."""
  keys = sorted({*old} | {*new})
  return ", ".join(key for key in keys if old.get(key) != new.get(key))


def shard_path(folder: epath.Path, plan: Plan, i: int) -> epath.Path:
  """Returns the file of a shard's embeddings."""
  return folder / f"{NAME}.array_record-{i:05}-of-{len(plan.shards):05}"


def keys_path(folder: epath.Path, plan: Plan, i: int) -> epath.Path:
  """Returns the file of a shard's keys, written last."""
  return folder / f"{NAME}.keys-{i:05}-of-{len(plan.shards):05}"


def write_shard(
  folder: epath.Path,
  plan: Plan,
  i: int,
  embedded: Iterable[tuple[str, bytes]],
) -> None:
  """Writes the embeddings of a shard, then their keys.

  Args:
    folder: the folder.
    plan: its plan.
    i: the number of the shard.
    embedded: captions, each once, with their tokens as plan.encode stores them.

  Raises:
    ValueError: a file cannot be written.
  """
  keys = []
  with writer(shard_path(folder, plan, i)) as write:
    for caption, data in embedded:
      key = plan.key(caption)
      write(key + data)
      keys.append(key)
  files.write(keys_path(folder, plan, i), b"".join(keys))


def remove_parts(folder: epath.Path) -> None:
  """Removes what killed processes have left in a finished folder."""
  for path in folder.glob(".*.part"):
    path.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class _File:
  """Describes a file to array_record; all of its records are read."""

  filename: str
  take: int
  skip: int = 0

  @property
  def examples_in_shard(self) -> int:
    return self.take


class Embeddings:
  """Looks up captions: tokens bfloat16 [n, L, D] and mask bool [n, L].

  It takes a tokenizer's place in data/pipeline.py. Many threads may call it.

  Args:
    folder: a folder that embed has finished.
    padding: whether padding counts as tokens, as for nets that attend to it.

  Attributes:
    plan: what the folder holds.

  Raises:
    ValueError: the folder is unfinished, or a file is damaged.
  """

  def __init__(self, folder: str | os.PathLike, *, padding: bool = False):
    self.plan, self._folder = read_plan(folder), str(folder)
    self._padding = padding
    path, self._files = epath.Path(files.expand(folder)), []
    shards, found = len(self.plan.shards), []
    for i in range(shards):
      keys = self._keys(keys_path(path, self.plan, i))
      file = shard_path(path, self.plan, i)
      self._files.append(_File(os.fspath(file), len(keys)))
      found.append(keys)
    lengths = [len(keys) for keys in found]
    keys = np.concatenate(found)
    places = np.repeat(np.arange(shards), lengths) << 32
    places += np.concatenate([np.arange(n) for n in lengths])
    order = np.argsort(keys, kind="stable")
    self._sorted, self._places = keys[order], places[order]
    self._open = OpenFiles(self._files)

  def _keys(self, path: epath.Path) -> np.ndarray:
    """Reads the first 8 bytes of the keys of a shard."""
    try:
      data = path.read_bytes()
    except FileNotFoundError:
      raise ValueError(
        f"embeddings {self._folder} lack {path.name}, expected all"
        f" {len(self.plan.shards)} shards: run embed again to finish them"
      ) from None
    except OSError as error:
      raise ValueError(
        f"embeddings {path} cannot be read: {files.reason(error)}"
      ) from error
    if len(data) % _KEY:
      raise ValueError(
        f"embeddings {path} are damaged: remove the file, and embed again"
      )
    return np.frombuffer(data, ">u8").reshape(-1, _KEY // 8)[:, 0].astype("u8")

  def __len__(self) -> int:
    return len(self._sorted)

  def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads the embeddings of captions.

    Raises:
      ValueError: a caption has none, or its record is damaged.
    """
    return self._batch([self._read(caption) for caption in captions])

  def null(self) -> tuple[np.ndarray, np.ndarray]:
    """Reads the embedding of the empty prompt: tokens [1, L, D], mask [1, L].

    Raises:
      ValueError: its file is missing or damaged.
    """
    path = epath.Path(files.expand(self._folder)) / NULL
    try:
      data = path.read_bytes()
    except OSError as error:
      raise ValueError(
        f"embeddings {path} cannot be read: {files.reason(error)}"
      ) from error
    return self._batch([self._checked(data, "", str(path))])

  def _batch(self, rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pads rows of tokens to one length."""
    plan = self.plan
    tokens = np.zeros((len(rows), plan.length, plan.dim), bfloat16)
    mask = np.zeros(tokens.shape[:2], bool)
    for i, row in enumerate(rows):
      tokens[i, : len(row)] = row
      mask[i, : len(row)] = True
    return tokens, mask | self._padding

  def _read(self, caption: str) -> np.ndarray:
    """Reads the tokens of a caption."""
    first = int.from_bytes(self.plan.key(caption)[:8])
    place = int(np.searchsorted(self._sorted, np.uint64(first)))
    if place == len(self._sorted) or int(self._sorted[place]) != first:
      raise ValueError(
        f"caption {files.quote(caption)} has no embedding in {self._folder},"
        " expected those of the dataset: run embed into another folder"
      )
    shard, record = divmod(int(self._places[place]), 2**32)
    try:
      data = self._open[shard][record]
    except (OSError, RuntimeError, IndexError) as error:
      raise ValueError(
        f"embeddings {self._files[shard].filename} cannot be read:"
        f" {files.reason(error)}"
      ) from error
    return self._checked(data, caption, self._files[shard].filename)

  def _checked(self, data: bytes, caption: str, where: str) -> np.ndarray:
    """Decodes a record; ValueError if it is of another caption."""
    if data[:_KEY] != self.plan.key(caption):
      raise ValueError(
        f"embeddings {where} have no record of caption {files.quote(caption)},"
        " though their keys name it: embed again into another folder"
      )
    return self.plan.decode(data[_KEY:])


def write_null(folder: epath.Path, plan: Plan, tokens: np.ndarray) -> None:
  """Writes the embedding float32 [n, dim] of the empty prompt."""
  files.write(folder / NULL, plan.key("") + plan.encode(tokens))
