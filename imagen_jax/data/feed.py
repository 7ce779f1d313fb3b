"""Read-ahead of batches, so that the device does not wait for the host."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

# A read of an object store takes 30 to 60 ms: 32 at once are 500 to 1,000
# records/s. While a batch is collected, the next one is read.
READS, BUFFER = 32, 2
T = TypeVar("T")
_POLL = 0.1  # seconds between checks of whether to keep waiting
_ENDING = 1.0  # seconds within which the thread ends unless its source hangs


class Stopped(Exception):
  """An error raised when `stop()` or a closed feed ends the wait for data."""


class Feed(Generic[T]):
  """Iterates over a source that a thread of its own reads ahead.

  `next` re-raises the source's errors unchanged. It raises ValueError after
  `patience` seconds of waiting, and Stopped once `stop()` is true or the feed
  is closed. An item that is ready is returned even if `stop()` is true.

  The thread closes the source at its end, if that has a `close`.

  Args:
    source: the iterator to read.
    patience: the longest wait for one item, in seconds.
    log: is called with a sentence to log while `next` waits.
    stop: is called while `next` waits; true ends the wait.
    warn_every: seconds between calls of `log`.
    ahead: the most items to keep ready.

  Attributes:
    waited: the seconds that `next` has waited so far, in total.
  """

  def __init__(
    self,
    source: Iterator[T],
    *,
    patience: float,
    log: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
    warn_every: float = 30,
    ahead: int = 2,
  ):
    self.waited = 0.0
    self._source = source
    self._patience = patience
    self._log = log
    self._stop = stop
    self._warn_every = warn_every
    # Pairs (item, None), and last (None, the error that ended the source).
    self._ready = queue.Queue(ahead)
    self._closed = threading.Event()
    # A daemon thread: if it hangs in the source, the program can still exit.
    self._thread = threading.Thread(target=self._read, name="feed", daemon=True)
    self._thread.start()

  def __iter__(self) -> "Feed[T]":
    return self

  def __next__(self) -> T:
    begun = time.monotonic()
    try:
      item, end = self._wait(begun)
    finally:
      self.waited += time.monotonic() - begun
    if end is not None:
      self._ready.put((None, end))  # for the next call
      raise end
    return item

  def close(self) -> None:
    """Ends the thread, or abandons it if it hangs in the source."""
    self._closed.set()
    while not self._ready.empty():  # the thread may wait for a free slot
      self._ready.get_nowait()
    self._thread.join(timeout=_ENDING)

  def _wait(self, begun: float) -> tuple[T | None, BaseException | None]:
    """Waits for an item, or for the error that ended the source."""
    warn_at = self._warn_every
    while not self._closed.is_set():
      try:
        return self._ready.get(timeout=_POLL)
      except queue.Empty:
        pass
      if self._stop():
        raise Stopped
      waited = time.monotonic() - begun
      if waited >= self._patience:
        raise ValueError(
          f"no record was read for {waited:.0f} s, expected one within"
          f" patience, {self._patience:g} s"
        )
      if waited >= warn_at:
        warn_at += self._warn_every
        self._log(
          f"waiting for data for {waited:.0f} s; the run ends after"
          f" {self._patience:g} s"
        )
    raise Stopped

  def _read(self) -> None:
    """Reads the source into the queue, in the thread."""
    try:
      for item in self._source:
        self._ready.put((item, None))
        if self._closed.is_set():
          return
      end = StopIteration()
    except BaseException as error:
      end = error
    finally:
      if hasattr(self._source, "close"):
        self._source.close()
    self._ready.put((None, end))
