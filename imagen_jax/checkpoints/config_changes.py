"""The changes of its config with which a run may resume."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

# Keys and sections that may change within a run. They set where, how fast and
# how long to compute, and what to log and keep, but not what is computed. []
# stands for every element of a list.
FREE = (
  "mesh",
  "sampling",
  "weights",
  "text.batch_size",
  "text.encoder.scan",
  "stage.net.remat",
  "stage.net.scan",
  "stage.net.blocks[].remat",
  "data.data_dir",
  "data.cache",
  "data.max_bad_share",
  "data.max_small_share",
  "data.threads",
  "data.reads",
  "data.buffer",
  "data.patience",
  "train.steps",
  "train.accumulate",
  "train.log_every",
  "train.sample_every",
  "train.checkpoint_every",
  "train.keep_checkpoints",
  "train.keep_every",
  "train.num_samples",
  "train.sample_split",
  "train.validate_every",
  "train.validate_batches",
  "train.validate_split",
  "train.evaluate_every",
  "train.evaluate_metric",
  "train.evaluate_images",
  "train.hang_after",
  "train.max_skipped",
  "train.start_from",
)
# Compared only with checkpoints that have them: no default stands for them.
IF_SAVED = ("dataset",)
# Files that may move but not change: only their names are compared.
FILES = ("text.vocabulary", "text.weights", "data.embeddings")
# The rules for keys of older configs. A new key needs no rule: a config that
# lacks it is compared at its default (build/defaults.py).
RENAMED: Mapping[str, str] = {  # old name of a key or section: new name
  "stage.enlarge": "stage.upsample"
}
REMOVED: Mapping[str, Any] = {}  # name: the value that computes the same
SHOWN = 5


def config_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
  """Names the differences of two configs that change what is computed.

  Args:
    saved: the checkpoint's config as JSON values.
    now: the run's config as JSON values.

  Returns:
    The first few keys, as in "data.seed was 0, is 1"; "" if there are none. If
    another kind is chosen, the settings of the two kinds are left out.
  """
  old, new = _todays(_leaves(saved)), _todays(_leaves(now))
  differ = {k for k in old.keys() | new.keys() if old.get(k) != new.get(k)}
  differ -= {key for key in IF_SAVED if key not in old or key not in new}
  kinds = {key.removesuffix("kind") for key in differ if key.endswith(".kind")}
  changed = [
    f"{key} was {old.get(key, 'not set')}, is {new.get(key, 'not set')}"
    for key in sorted(differ)
    if not _is_free(key)
    and (key.endswith(".kind") or not any(map(key.startswith, kinds)))
  ]
  rest = len(changed) - SHOWN
  more = [f"and {rest} more"] if rest > 0 else []
  return "; ".join(changed[:SHOWN] + more)


def _is_free(key: str) -> bool:
  """Returns True for a key that may change within a run."""
  key = re.sub(r"\[\d+\]", "[]", key)
  return any(key == free or key.startswith(free + ".") for free in FREE)


def _todays(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Returns leaves under the names that their keys have today."""
  found = dict(leaves)
  for old, new in RENAMED.items():
    moved = {
      new + key[len(old) :]: value
      for key, value in leaves.items()
      if key == old or key.startswith(old + ".")
    }
    if moved:  # replaces the defaults of the new name
      for name in (old, new):
        for key in [*found]:
          if key == name or key.startswith(name + "."):
            del found[key]
      found |= moved
  same = {key for key, value in REMOVED.items() if found.get(key) == value}
  return {key: value for key, value in found.items() if key not in same}


def _leaves(value: Any, key: str = "") -> dict[str, Any]:
  """Flattens a config to {"stage.net.blocks[0].channels": 128, ...}.

  Lists without mappings stay as they are.
  """
  if isinstance(value, Mapping):
    parts = {f"{key}.{k}" if key else k: v for k, v in value.items()}
  elif isinstance(value, list | tuple) and any(
    isinstance(part, Mapping) for part in value
  ):
    parts = {f"{key}[{i}]": part for i, part in enumerate(value)}
  elif key in FILES and isinstance(value, str):
    return {key: pathlib.PurePath(value).name}
  else:
    return {key: list(value) if isinstance(value, tuple) else value}
  found = {}
  for name, part in parts.items():
    found |= _leaves(part, name)
  return found
