"""Orbax without its tracebacks and warnings: ours are sentences."""

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

# Where Orbax runs its coroutines. It is not public: a release without it
# would print tracebacks, and is let be.
_RUNNER = "orbax.checkpoint._src.asyncio_utils"
_lock = threading.Lock()
_blocks = 0  # that threads are in now
_undo = contextlib.ExitStack()  # what the last of them does


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
  """Keeps Orbax from printing tracebacks and warnings in the block.

  It logs no errors and no advice, such as to save less often. What runs beside
  a read or write that fails is ended first. Orbax is as it was after the block,
  or after the last of blocks that overlap. The event loops of others are left
  alone, also one that runs where Orbax is called, as in a notebook.
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
  logger = absl.logging.get_absl_logger()
  logger.addFilter(_is_not_of_orbax)
  _undo.callback(logger.removeFilter, _is_not_of_orbax)
  runner = sys.modules.get(_RUNNER)
  if hasattr(runner, "run_sync"):
    _undo.callback(setattr, runner, "run_sync", runner.run_sync)
    runner.run_sync = _run_sync


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
  # Of a warning too, all that a user needs is raised or said by us.
  return record.levelno < logging.WARNING or "/orbax/" not in record.pathname


def _run_sync(coro: Coroutine) -> Any:
  """Returns what a coroutine does, in a loop of its own, in any thread."""
  try:
    asyncio.get_running_loop()
  except RuntimeError:
    return _run(coro)
  # No loop runs within another; Orbax itself would patch asyncio to allow it.
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
  """An event loop that ends what it began before it is closed.

  When one read or write fails, Orbax closes the loop on all others. Each would
  print a traceback when it is done, in a thread of its own, or collected.
  """

  def close(self) -> None:
    while not self.is_closed() and (rest := asyncio.all_tasks(self)):
      self.run_until_complete(_ended(rest))
    super().close()

  def call_exception_handler(self, context: dict[str, Any]) -> None:
    """Is silent: the first failure is raised, and nobody asks for the rest."""


async def _ended(tasks: set[asyncio.Task]) -> None:
  await asyncio.gather(*tasks, return_exceptions=True)
