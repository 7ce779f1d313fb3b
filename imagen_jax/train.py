"""Trains one stage of the cascade.

  python -m imagen_jax.train --config=configs/shapes16.py --workdir=DIR

Called again with the same workdir it goes on from the newest checkpoint. On
SIGTERM or Ctrl-C it saves and ends with exit code 75. --dry_run shows a batch
and what the run will take, and ends before the first step.
"""

import os

# TensorFlow only reads data and writes metrics; this keeps it from telling
# how it would compute.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import sys
import types

from absl import flags

from imagen_jax import build, imagen
from imagen_jax.cli import program
from imagen_jax.interop import published
from imagen_jax.training.preemption import SAVED
from imagen_jax.training.summary import dry_run

read_config = program.define_config("configs/shapes16.py")
join_others = program.define_distributed()
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints, metrics and sample grids go."
)
ALLOW_CONFIG_CHANGE = flags.DEFINE_boolean(
  "allow_config_change", False,
  "Go on from a checkpoint of a config that computes something else.",
)  # fmt: skip
DRY_RUN = flags.DEFINE_boolean(
  "dry_run", False, "Check all, show a batch and the sizes, and train nothing."
)
PROFILE_STEPS = flags.DEFINE_string(
  "profile_steps", None, "A:B writes a trace of steps A to B to WORKDIR/trace."
)


def profiled() -> tuple[int, int] | None:
  """Returns the steps of --profile_steps; ValueError if it is not A:B."""
  given = PROFILE_STEPS.value
  if given is None:
    return None
  first, _, last = given.partition(":")
  if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
    raise ValueError(
      f"--profile_steps is {given!r}, expected A:B, the first and the last step"
    )
  return int(first), int(last)


def main() -> None:
  config, workdir = read_config(), WORKDIR.value
  if not workdir:
    raise ValueError("--workdir is needed: where checkpoints and metrics go")
  workdir, steps = os.path.expanduser(workdir), profiled()
  program.check_bucket("workdir", workdir)
  # A mistake in the config ends each process before it waits for the others.
  run = build.run(config)
  published.tokenizer(run.text)
  join_others()
  if DRY_RUN.value:
    interrupted = not dry_run(run, workdir)
  else:
    interrupted = imagen.train(
      config,
      workdir,
      allow_config_change=ALLOW_CONFIG_CHANGE.value,
      profile_steps=steps,
    ).interrupted
  if interrupted:
    sys.exit(SAVED)


class _Callable(types.ModuleType):
  """This module, which is also imagen_jax.train(config, workdir)."""

  __call__ = staticmethod(imagen.train)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
  program.run_and_leave(main, (0, SAVED))
