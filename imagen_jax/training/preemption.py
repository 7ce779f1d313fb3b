"""A job that is asked to end: by SIGTERM, before its machine is taken away.

SIGHUP, of a terminal that was closed, and SIGINT ask the same.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

# The exit code of a run that saved and ended because it was asked to, and goes
# on when called again: EX_TEMPFAIL of sysexits.h.
SAVED = 75


class Preemption:
  """Hears SIGTERM, SIGINT and SIGHUP; a second one ends as without it.

  But a second SIGHUP is ignored.

  Within its with-block, that is, after which the handlers are as before. Only
  in the main thread, for Python allows no other to handle signals. Of a job of
  many processes any one may be asked: JAX's coordination service tells the
  others, and a step at which all of them shall end.
  """

  def __init__(self):
    self._told = False
    # JAX has its own handler of SIGTERM then, to which others would be deaf.
    self._shared = jax.distributed.is_initialized()
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "Preemption":
    if threading.current_thread() is threading.main_thread():
      if not self._shared:
        self._handle(signal.SIGTERM, self._terminate)
      for number, handler in (
        (signal.SIGINT, self._interrupt), (signal.SIGHUP, self._hang_up),
      ):  # fmt: skip
        if signal.getsignal(number) != signal.SIG_IGN:  # as if by nohup
          self._handle(number, handler)
    return self

  def __exit__(self, *_: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def told(self) -> bool:
    """Whether a process that is alone was asked to end."""
    return self._told

  def reached(self, step: int) -> bool:
    """Whether to save and end now; to be asked after every step, by all."""
    if self._shared:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._told

  def _handle(self, number: int, handler: Callable) -> None:
    before = signal.getsignal(number)
    if before is not None:  # else it is not Python's, and stays
      self._before[number] = before
      signal.signal(number, handler)

  def _terminate(self, *_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    self._told = True

  def _interrupt(self, *_: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)

  def _hang_up(self, *_: Any) -> None:
    # A terminal that closes may send it twice, by the kernel and the shell.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not self._told:
      os.kill(os.getpid(), signal.SIGTERM)
