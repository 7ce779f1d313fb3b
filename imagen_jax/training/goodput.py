"""Goodput: the share of a workdir's time that trained its newest state."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from imagen_jax import files
from imagen_jax.progress import Clock, clock

FILE = "goodput.json"
LOST = "lost"  # the part of steps that a later run computed again
# The parts of a run that are no steps, and those of a step. "setup" is all
# before the run resumes that is not "restore".
STARTING = ("setup", "restore", "compile", "samples")
STEPPING = ("compute", "data", "checkpoint", "host")
PARTS = (*STARTING, *STEPPING, LOST)


class Goodput:
  """Adds up the seconds of all runs of a workdir by what they went into.

  The sums are kept in workdir/goodput.json. Goodput is the share of "compute",
  without the steps that were lost. Time between runs does not count.

  Attributes:
    runs: how often a run began in the workdir.
    lost_steps: steps that were computed and not saved, so that a later run
      computed them again. They count with the mean pace of all steps.
    seconds: the seconds of each of PARTS.
  """

  def __init__(self):
    self.runs, self.steps, self.lost_steps = 1, 0, 0
    self.seconds = dict.fromkeys(PARTS, 0.0)
    self._clock, self._step = Clock(), 0
    self._begun = time.monotonic()

  def part(self, name: str) -> contextlib.AbstractContextManager[None]:
    """Adds the time of a with-block to one of STARTING."""
    return self._clock.part(name)

  def resume(
    self, workdir: str, step: int, log: Callable[[str], None] = print
  ) -> None:
    """Ends the setup, and adds the sums of earlier runs; resumes at a step.

    A file that cannot be used is logged, and the sums begin at zero.
    """
    self._step = step
    setup = time.monotonic() - self._begun - self._clock.seconds("restore")
    self.seconds["setup"] += setup
    path = epath.Path(workdir) / FILE
    try:
      if not path.exists():
        return
      found = files.read_json(path, "goodput")
      runs, done, steps, lost_steps = (
        _count(found, name) for name in ("runs", "step", "steps", "lost_steps")
      )
      seconds = {name: _seconds(found["seconds"], name) for name in PARTS}
    except Exception as error:  # stores raise many kinds
      log(f"{path} is not used, goodput begins anew: {files.reason(error)}")
      return
    self.runs, self.steps, self.lost_steps = runs + 1, steps, lost_steps
    for name in PARTS:
      self.seconds[name] += seconds[name]
    if (again := done - step) > 0:
      self._lose(again)

  def _lose(self, again: int) -> None:
    """Moves the time of steps that run again to LOST, by the mean pace."""
    share = min(again / max(self.steps, 1), 1.0)
    for name in STEPPING:
      moved = share * self.seconds[name]
      self.seconds[name] -= moved
      self.seconds[LOST] += moved
    self.steps = max(self.steps - again, 0)
    self.lost_steps += again

  def add(self, step: int, spent: Mapping[str, float]) -> float:
    """Adds the seconds of the steps up to this one; returns the goodput.

    Args:
      step: the newest step.
      spent: the seconds of each of STEPPING since the last call.
    """
    for name, seconds in (*self._clock.take().items(), *spent.items()):
      self.seconds[name] += seconds
    self.steps += step - self._step
    self._step = step
    return self.share("compute")

  def share(self, name: str) -> float:
    """Returns a part's share of the time of all runs, 0 to 1."""
    return self.seconds[name] / max(sum(self.seconds.values()), 1e-9)

  def text(self) -> str:
    """Returns the content of goodput.json."""
    return json.dumps(
      {
        "step": self._step,
        "runs": self.runs,
        "steps": self.steps,
        "lost_steps": self.lost_steps,
        "seconds": {k: round(v, 3) for k, v in self.seconds.items()},
      },
      indent=1,
    )

  def sentence(self) -> str:
    """States where the time went, the largest part first."""
    total = clock(sum(self.seconds.values()))
    shares = {name: round(100 * self.share(name)) for name in PARTS}
    parts = sorted(shares, key=shares.get, reverse=True)
    listed = ", ".join(f"{name} {shares[name]} %" for name in parts[:5])
    runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
    return (
      f"goodput {shares['compute']} % of {total} in {runs}"
      f" ({self.lost_steps} steps lost): {listed}"
    )


def _count(found: Mapping[str, Any], name: str) -> int:
  """Returns a count of goodput.json; ValueError if it is none."""
  value = found[name]
  if type(value) is not int or value < 0:
    raise ValueError(f"{name} is {value!r}, expected a count")
  return value


def _seconds(found: Mapping[str, Any], name: str) -> float:
  """Returns seconds of goodput.json, 0 if it has none; ValueError if bad."""
  value = found.get(name, 0.0)
  if not isinstance(value, int | float) or not 0 <= value < math.inf:
    raise ValueError(f"seconds of {name} are {value!r}, expected a number")
  return float(value)
