"""Trains one stage of the cascade.

  python -m imagen_jax.train --config=configs/shapes16.py --workdir=DIR

Run the same command again to resume from the newest checkpoint. On SIGTERM,
SIGHUP or Ctrl-C it saves and ends with exit code 75. It refuses a workdir that
another run writes to. --dry_run writes a batch, logs the cost of the run, and
ends before the first step. With --time_input it only measures how fast this
host reads batches, and whether that suffices for the chips of --topology.
"""

import sys
import types

from absl import flags

from imagen_jax import build, imagen
from imagen_jax.aot import topologies
from imagen_jax.cli import command_line, program
from imagen_jax.interop import published
from imagen_jax.progress import Progress
from imagen_jax.training.preemption import SAVED


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes16.py")
  command_line.define_compile_cache(values)
  command_line.define_distributed(values)
  command_line.define_path(
    values,
    "workdir",
    None,
    "The folder of checkpoints, metrics and sample grids.",
  )
  flags.DEFINE_boolean(
    "allow_config_change", False,
    "Resume a checkpoint of a config that computes something else.", **on
  )  # fmt: skip
  flags.DEFINE_boolean(
    "dry_run", False,
    "Checks all, writes a batch as an image, prints sizes; trains nothing.",
    **on
  )  # fmt: skip
  flags.DEFINE_boolean(
    "time_input", False,
    "With --dry_run: only measure how fast this host reads batches.", **on
  )  # fmt: skip
  flags.DEFINE_string(
    "topology", None,
    "With --time_input: the TPU slice to feed, such as v5e-256; else the "
    "devices at hand.", **on
  )  # fmt: skip
  flags.DEFINE_integer(
    "num_slices", 1, "With --topology: the number of slices.", **on
  )
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


def time_input(args: flags.FlagValues) -> None:
  """Measures how fast this host reads batches, for --time_input."""
  # Imported here, because the core does not need the packages it imports.
  from imagen_jax.training import input_speed

  run, name, count = build.run(args.config), args.topology, args.num_slices
  if name:
    hosts, peak = topologies.hosts_and_peak(name, count)
    name = f"{count} x {name}" if count > 1 else name
    chips = input_speed.Chips(name, hosts, peak)
  else:
    command_line.join_others(args)
    chips = input_speed.own_chips()
  log = Progress("train", 0, quiet=chips.host > 0).log
  input_speed.time_input(run, chips, log)


def check_time_input(args: flags.FlagValues) -> None:
  """Raises ValueError for flags that only --dry_run --time_input takes."""
  if args.time_input and not args.dry_run:
    raise ValueError(
      "--time_input needs --dry_run: it measures and does not train"
    )
  if args.topology and not args.time_input:
    raise ValueError(
      "--topology needs --dry_run --time_input, whose chips it names"
    )
  if args["num_slices"].present and not args.topology:
    raise ValueError("--num_slices needs --topology")


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Trains a stage, or does a dry run, and exits with 75 if interrupted."""
  config, workdir = args.config, args.workdir
  check_time_input(args)
  if args.time_input:
    time_input(args)
    return
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
  """Makes this module callable, as imagen_jax.train(config, workdir)."""

  __call__ = staticmethod(imagen.train)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
  program.run_and_leave(main, (0, SAVED))
