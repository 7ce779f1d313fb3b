"""A job that is asked to end: by SIGTERM, before its machine is taken away."""

import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils

# The exit code of a run that saved and ended because it was asked to, and goes
# on when called again: EX_TEMPFAIL of sysexits.h.
SAVED = 75


class Preemption:
  """Hears SIGTERM and SIGINT, the first time; the second one ends as ever.

  Of a job of many processes any one may be asked: JAX's coordination service
  tells the others, and a step at which all of them shall end.
  """

  def __init__(self):
    self._told = False
    # JAX has its own handler of SIGTERM then, to which others would be deaf.
    self._shared = jax.distributed.is_initialized()
    if not self._shared:
      signal.signal(signal.SIGTERM, self._terminate)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as if by nohup
      signal.signal(signal.SIGINT, self._interrupt)

  def told(self) -> bool:
    """Whether a process that is alone was asked to end."""
    return self._told

  def reached(self, step: int) -> bool:
    """Whether to save and end now; to be asked after every step, by all."""
    if self._shared:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._told

  def _terminate(self, *_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    self._told = True

  def _interrupt(self, *_: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)
