"""Orbax without its tracebacks and warnings; this package logs sentences."""

import asyncio
import contextlib
import contextvars
import logging
import sys
import threading
from collections.abc import Coroutine, Iterator
from concurrent import futures
from typing import Any

import absl.logging

# Where Orbax runs its coroutines. The module is not public: a release without
# it prints tracebacks and is left as it is.
_RUNNER = "orbax.checkpoint._src.asyncio_utils"
_lock = threading.Lock()
_blocks = 0  # in progress, over all threads
_undo = contextlib.ExitStack()  # run at the end of the last block


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
  """Keeps Orbax from printing tracebacks and warnings in the block.

  Orbax logs no errors and no advice, such as to save less often. When a read or
  write fails, all other tasks are finished first. Orbax is restored after the
  block, or after the last of overlapping blocks. Event loops of other code stay
  as they are, also one that runs where Orbax is called, as in a notebook.
  """
  global _blocks
  with _lock:
    _blocks += 1
    if _blocks == 1:
      _begin()
  try:
    yield
  finally:
    with _lock:
      _blocks -= 1
      if not _blocks:
        _undo.close()


def _begin() -> None:
  """Filters Orbax's log and replaces its runner of coroutines."""
  logger = absl.logging.get_absl_logger()
  logger.addFilter(_is_not_of_orbax)
  _undo.callback(logger.removeFilter, _is_not_of_orbax)
  runner = sys.modules.get(_RUNNER)
  if hasattr(runner, "run_sync"):
    _undo.callback(setattr, runner, "run_sync", runner.run_sync)
    runner.run_sync = _run_sync


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  # Warnings are dropped too: this package raises or logs what a user needs.
  return record.levelno < logging.WARNING or "/orbax/" not in record.pathname


def _run_sync(coro: Coroutine) -> Any:
  """Runs a coroutine in an event loop of its own, from any thread."""
  try:
    asyncio.get_running_loop()
  except RuntimeError:
    return _run(coro)
  # Loops cannot be nested; Orbax itself would patch asyncio to allow it.
  with futures.ThreadPoolExecutor(1, "orbax") as pool:
    context = contextvars.copy_context()
    return pool.submit(context.run, _run, coro).result()


def _run(coro: Coroutine) -> Any:
  loop = _Loop()
  try:
    return loop.run_until_complete(coro)
  finally:
    loop.close()


class _Loop(asyncio.SelectorEventLoop):
  """An event loop that finishes its tasks before it is closed.

  When one read or write fails, Orbax closes the loop on all others. Each of
  them would print a traceback when it is done, in its own thread, or collected.
  """

  def close(self) -> None:
    """Waits for all tasks, without cancelling any, and closes the loop."""
    while not self.is_closed() and (rest := asyncio.all_tasks(self)):
      self.run_until_complete(_ended(rest))
    super().close()

  def call_exception_handler(self, context: dict[str, Any]) -> None:
    """Ignores errors: the first failure is raised, the rest are not needed."""


async def _ended(tasks: set[asyncio.Task]) -> None:
  await asyncio.gather(*tasks, return_exceptions=True)
