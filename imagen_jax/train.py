"""Trains one stage of the cascade.

  python -m imagen_jax.train --config=configs/shapes16.py --workdir=DIR

Run the same command again to resume from the newest checkpoint. On SIGTERM,
SIGHUP or Ctrl-C it saves and ends with exit code 75. It refuses a workdir that
another run writes to. --dry_run writes a batch, logs the cost of the run, and
ends before the first step.
"""

import sys
import types

from absl import flags

from imagen_jax import build, imagen
from imagen_jax.cli import command_line, program
from imagen_jax.interop import published
from imagen_jax.training.preemption import SAVED


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes16.py")
  command_line.define_compile_cache(values)
  command_line.define_distributed(values)
  command_line.define_path(
    values, "workdir", None, "Where checkpoints, metrics and sample grids go."
  )
  flags.DEFINE_boolean(
    "allow_config_change", False,
    "Go on from a checkpoint of a config that computes something else.", **on
  )  # fmt: skip
  flags.DEFINE_boolean(
    "dry_run", False,
    "Check all, show a batch and the sizes, and train nothing.", **on
  )  # fmt: skip
  flags.DEFINE_integer(
    "profiler_port", None,
    "Lets TensorBoard trace each process, on this port.", **on
  )  # fmt: skip
  flags.DEFINE_string(
    "profile_steps", None,
    "A:B writes a trace of steps A to B to WORKDIR/trace.", **on
  )  # fmt: skip


def profiled(given: str | None) -> tuple[int, int] | None:
  """Returns the steps of --profile_steps; ValueError if it is not A:B."""
  if given is None:
    return None
  first, _, last = given.partition(":")
  if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
    raise ValueError(
      f"--profile_steps is {given!r}, expected A:B, the first and the last step"
    )
  return int(first), int(last)


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Trains a stage, or does a dry run, and exits with 75 if interrupted."""
  config, workdir = args.config, args.workdir
  if not workdir:
    raise ValueError("--workdir is needed: where checkpoints and metrics go")
  steps = profiled(args.profile_steps)
  program.check_bucket("workdir", workdir)
  # A mistake in the config ends each process before it waits for other ones.
  run = build.run(config)
  published.check_text(run.text)
  command_line.join_others(args)
  if args.dry_run:
    # Imported here, because the core does not need the packages it imports.
    from imagen_jax.training.summary import dry_run

    interrupted = not dry_run(run, workdir)
  else:
    with program.profiler_server(args.profiler_port):
      interrupted = imagen.train(
        config,
        workdir,
        allow_config_change=args.allow_config_change,
        profile_steps=steps,
        on_hang=lambda: program.leave(program.LOST),
      ).interrupted
  if interrupted:
    sys.exit(SAVED)


class _Callable(types.ModuleType):
  """This module, which is also callable: imagen_jax.train(config, workdir)."""

  __call__ = staticmethod(imagen.train)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
  program.run_and_leave(main, (0, SAVED))
