"""Actions that fail on all processes of a job if they fail on one.

A process that continued alone would wait forever in its next collective.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from imagen_jax import files

MEETINGS = itertools.count()
TOGETHER = 10.0  # seconds
MOST_BYTES = 500  # of the words that processes exchange


class Failed(Exception):
  """States what failed on one process, which counts as failed on all."""


def raise_together(act: Callable[[], Any]) -> Any:
  """Calls act() on all processes and returns its result.

  If act waits for other processes, its failure on one must end the wait of all.

  Raises:
    Failed: act raised on any process; raised on all of them.
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
  """Returns the first process's values; all call it with one shape."""
  if jax.process_count() == 1:
    return values
  return np.asarray(multihost_utils.broadcast_one_to_all(values))


def gather_host_stats(
  numbers: Sequence[int], words: str
) -> tuple[np.ndarray, list[str]]:
  """Gathers k numbers and a few words of each of n processes; all call it."""
  if jax.process_count() == 1:
    return np.array([numbers]), [words]
  cut = words.encode()[:MOST_BYTES].ljust(MOST_BYTES, b"\0")
  # JAX would cut 64-bit integers to 32 bits; pairs of 32 bits lose nothing.
  wide = np.array(numbers, np.int64).view(np.int32)
  found, said = multihost_utils.process_allgather(
    (wide, np.frombuffer(cut, np.uint8))
  )
  return np.ascontiguousarray(found).view(np.int64), [
    bytes(row).rstrip(b"\0").decode(errors="ignore") for row in said
  ]


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Lets all processes of a job end by the same error, which ends the block.

  JAX aborts a process as soon as the first one is gone. So each waits at the
  end of the block for the others, for at most TOGETHER seconds, because the
  error may be of one process only.
  """
  try:
    yield
  finally:
    # Not public, see Meeting.
    client = jax._src.distributed.global_state.client
    if client is not None:
      with contextlib.suppress(Exception):  # the others have not come
        client.wait_at_barrier("ending", int(1000 * TOGETHER))
        if jax.process_index() == 0:
          time.sleep(1.0)  # the coordinator goes last


@contextlib.contextmanager
def shared_errors() -> Iterator[None]:
  """Raises a ValueError of the block on all processes if one raises it.

  All processes run the block. A process without an error of its own raises the
  error of the first process that has one.
  """
  failure = None
  try:
    yield
  except ValueError as error:
    failure = error
  numbers, words = gather_host_stats([failure is not None], str(failure))
  failed = np.flatnonzero(numbers[:, 0])
  if failed.size:
    raise failure or ValueError(words[failed[0]])


def reason(error: Exception) -> str:
  """Returns why an action failed here, or else that another process failed."""
  if not isinstance(error, Failed):
    return files.reason(error)
  if error.__context__ is not None:
    return reason(error.__context__)  # this process's own failure
  return str(error)


class Meeting:
  """A barrier for Orbax's saves at which all processes fail if one has failed.

  Processes wait 20 minutes at Orbax's own barrier for a process that failed.
  That process continues to a later barrier, however. If processes come to
  different barriers, one of them has failed, and all fail until reset().
  """

  def __init__(self):
    self.reset()

  def reset(self) -> None:
    """Lets processes meet again; all must call it while none is waiting."""
    self._name, self._count = f"checkpoints/{next(MEETINGS)}", 0
    self._failed = False

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Waits until all processes have come to this barrier.

    Args:
      key: the name that Orbax gives the barrier, the same on all processes.
      timeout_ms: the longest wait, in milliseconds.

    Raises:
      Failed: another process has failed, and came to a different barrier.
    """
    if jax.process_count() == 1:
      return
    if not self._failed:
      self._failed = self._meet(key, timeout_ms) != {key}
    if self._failed:
      raise Failed("another process failed")

  def _meet(self, key: str, timeout_ms: int) -> set[str]:
    """Waits for all processes; returns the keys with which they came."""
    # Not public, but Orbax uses it too; unlike collectives, it allows threads.
    client = jax._src.distributed.global_state.client
    place = f"{self._name}/{self._count}"
    self._count += 1
    client.key_value_set(f"{place}/{jax.process_index()}", key)
    client.wait_at_barrier(place, timeout_ms)
    return {found for _, found in client.key_value_dir_get(f"{place}/")}
