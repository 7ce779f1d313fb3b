"""Processes that fail together, for one that goes on alone waits for ever."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from imagen_jax import files

MEETINGS = itertools.count()
MOST_BYTES = 500  # of the words that processes tell each other


class Failed(Exception):
  """What failed on some process, and so counts as failed on all."""


def together(act: Callable[[], Any]) -> Any:
  """What act() gives; Failed on all processes if it raises on any.

  If act waits for others, its failure on one must end the waiting of all.
  """
  found, failure = None, None
  try:
    found = act()
  except Exception as error:  # Orbax and its stores raise many kinds.
    failure = error
  if not multihost_utils.process_allgather(np.array(failure is None)).all():
    why = reason(failure) if failure else "another process failed"
    raise Failed(why) from failure
  return found


def from_first(values: np.ndarray) -> np.ndarray:
  """Returns the first process's values, of one shape on all; all call it."""
  if jax.process_count() == 1:
    return values
  return np.asarray(multihost_utils.broadcast_one_to_all(values))


def of_all(numbers: Sequence[int], words: str) -> tuple[np.ndarray, list[str]]:
  """Numbers [n, k] and a few words of each of n processes; all call it."""
  if jax.process_count() == 1:
    return np.array([numbers]), [words]
  cut = words.encode()[:MOST_BYTES].ljust(MOST_BYTES, b"\0")
  # As 32 bits JAX would make of 64: pairs of them lose nothing.
  wide = np.array(numbers, np.int64).view(np.int32)
  found, said = multihost_utils.process_allgather(
    (wide, np.frombuffer(cut, np.uint8))
  )
  return np.ascontiguousarray(found).view(np.int64), [
    bytes(row).rstrip(b"\0").decode(errors="ignore") for row in said
  ]


def reason(error: Exception) -> str:
  """Returns why something failed here, or else on another process."""
  if not isinstance(error, Failed):
    return files.reason(error)
  if error.__context__ is not None:
    return reason(error.__context__)  # this process's own failure came first
  return str(error)


class Meeting:
  """A barrier for Orbax's saves at which all fail when one has failed.

  Orbax's own lets the others wait for the one that failed, for 20 minutes. But
  that one goes on to a later barrier: so if processes come to different ones,
  one has failed, and from then on all do until reset().
  """

  def __init__(self):
    self.reset()

  def reset(self) -> None:
    """Lets them meet again; to be called by all, when none is waiting."""
    self._name, self._count = f"checkpoints/{next(MEETINGS)}", 0
    self._failed = False

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    if jax.process_count() == 1:
      return
    if not self._failed:
      self._failed = self._meet(key, timeout_ms) != {key}
    if self._failed:
      raise Failed("another process failed")

  def _meet(self, key: str, timeout_ms: int) -> set[str]:
    """Waits for all; to which keys they came."""
    # Not public, but what Orbax waits by too: threads may, unlike by arrays.
    client = jax._src.distributed.global_state.client
    place = f"{self._name}/{self._count}"
    self._count += 1
    client.key_value_set(f"{place}/{jax.process_index()}", key)
    client.wait_at_barrier(place, timeout_ms)
    return {found for _, found in client.key_value_dir_get(f"{place}/")}
