"""Reading ahead, so that the device does not wait for the host."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL = 0.1  # seconds between looks at whether to go on waiting
_ENDING = 1.0  # seconds within which a thread ends that does not hang


class Stopped(Exception):
  """Waiting for data ended because it was told to, or the feed was closed."""


class Feed(Generic[T]):
  """An iterator over another one, read ahead by a thread of its own.

  Up to `ahead` items are kept ready. What the source raises reaches `next`
  as it is. While `next` waits, `say` gets a sentence every `warn_every`
  seconds; after `patience` seconds it raises ValueError, and Stopped once
  `stop()` holds. An item that is ready is returned in any case. `waited` is
  how many seconds `next` has waited in all.
  """

  def __init__(
    self,
    source: Iterator[T],
    *,
    patience: float,
    say: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
    warn_every: float = 30,
    ahead: int = 2,
  ):
    self.waited = 0.0
    self._source = source
    self._patience = patience
    self._say = say
    self._stop = stop
    self._warn_every = warn_every
    # Pairs of an item and, instead of one, the error that ended the source.
    self._ready = queue.Queue(ahead)
    self._closed = threading.Event()
    # A daemon: one that hangs in the source must not keep the program.
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
    """Ends the thread, or leaves it behind if it hangs in the source."""
    self._closed.set()
    while not self._ready.empty():  # it may be waiting for a place
      self._ready.get_nowait()
    self._thread.join(timeout=_ENDING)

  def _wait(self, begun: float) -> tuple[T | None, BaseException | None]:
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
          f"no data came for {waited:.0f} s, expected some within patience,"
          f" {self._patience:g} s"
        )
      if waited >= warn_at:
        warn_at += self._warn_every
        self._say(
          f"waiting for data for {waited:.0f} s: none was read, and after"
          f" {self._patience:g} s the run ends"
        )
    raise Stopped

  def _read(self) -> None:
    try:
      for item in self._source:
        self._ready.put((item, None))
        if self._closed.is_set():
          return
      end = StopIteration()
    except BaseException as error:
      end = error
    self._ready.put((None, end))
