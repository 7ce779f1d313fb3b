"""Requests to end a job: SIGTERM, sent before its machine is taken away.

SIGHUP, sent when a terminal closes, and SIGINT are treated alike.
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

# The exit code of a run that was asked to end and saved; the same command
# resumes it. EX_TEMPFAIL of sysexits.h.
SAVED = 75


class Preemption:
  """Handles SIGTERM, SIGINT and SIGHUP as a request to save and end.

  A second SIGTERM or SIGINT ends the process as it would without a handler. A
  second SIGHUP is ignored.

  The with-block restores the old handlers. Signals are handled in the main
  thread only, as Python requires. In a job of many processes any one may be
  asked. JAX's coordination service then informs all processes of a step at
  which they end.
  """

  def __init__(self):
    self._asked = False
    # JAX then has its own SIGTERM handler, which informs other processes.
    self._shared = jax.distributed.is_initialized()
    self._before: dict[int, Any] = {}

  def __enter__(self) -> "Preemption":
    if threading.current_thread() is threading.main_thread():
      if not self._shared:
        self._handle(signal.SIGTERM, self._terminate)
      for number, handler in (
        (signal.SIGINT, self._interrupt), (signal.SIGHUP, self._hang_up),
      ):  # fmt: skip
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
          self._handle(number, handler)
    return self

  def __exit__(self, *_: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def asked(self) -> bool:
    """Returns True if this process, without others, was asked to end."""
    return self._asked

  def reached(self, step: int) -> bool:
    """Returns True to save and end now; all processes call it at every step."""
    if self._shared:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked

  def _handle(self, number: int, handler: Callable) -> None:
    """Sets a signal's handler and keeps the old one."""
    before = signal.getsignal(number)
    if before is not None:  # None: not Python's handler, which stays
      self._before[number] = before
      signal.signal(number, handler)

  def _terminate(self, *_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    self._asked = True

  def _interrupt(self, *_: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)

  def _hang_up(self, *_: Any) -> None:
    # A closing terminal may send it twice: the kernel and the shell do.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not self._asked:
      os.kill(os.getpid(), signal.SIGTERM)
