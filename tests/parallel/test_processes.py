"""Why something failed on one of many processes; the rest is in test_files."""

import errno

import numpy as np
import pytest

from imagen_jax.parallel import processes
from imagen_jax.parallel.processes import (
  Failed,
  raise_together,
  reason,
  shared_errors,
)


def test_another_processes_failure_is_as_it_said():
  assert reason(Failed("as another process said")) == "as another process said"
  assert reason(ValueError("one\ntwo")) == "ValueError: one"


def test_this_processes_own_failure_comes_first():
  def act():
    raise OSError(errno.ENOSPC, "No space left on device")

  with pytest.raises(Failed, match="^No space left on device$") as caught:
    raise_together(act)
  again = Failed("another process failed")
  again.__context__ = caught.value
  assert reason(again) == "No space left on device"


def test_an_error_of_one_process_is_raised_on_all(monkeypatch):
  """Each raises its own error, or else that of the first that has one."""
  said = ["", "", "a.png cannot be written: No space left on device"]
  given = []

  def gather_host_stats(numbers, words):
    given.append((numbers, words))
    failed = [[bool(text)] for text in said] + [numbers]
    return np.array(failed), [*said, words]

  monkeypatch.setattr(processes, "gather_host_stats", gather_host_stats)
  written = pytest.raises(ValueError, match="^a.png cannot be written: No spa")
  with written, shared_errors():
    pass
  with pytest.raises(ValueError, match="^mine$"), shared_errors():
    raise ValueError("mine")
  said[2] = ""
  with shared_errors():
    pass
  assert [numbers for numbers, _ in given] == [[False], [True], [False]]
  with pytest.raises(KeyError), shared_errors():
    raise KeyError("no mistake of the user's")
