"""Flags of the verbs, defined when a verb runs and not on import.

A verb's define_flags defines its flags on an absl FlagValues. parse returns the
same object, with one attribute for each flag.
"""

from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from imagen_jax.build import configs
from imagen_jax.files import expand
from imagen_jax.parallel import distributed

flags.disclaim_key_flags()  # --help lists --config as the verb's flag


class BadFlags(ValueError):
  """Explains in one sentence why a command line cannot be parsed."""


class _NotRead(Exception):
  """Carries the error of read_config past absl, as its cause."""


class _ConfigParser(flags.ArgumentParser):
  """Reads the config that --config names.

  Attributes:
    example: a value of --config.
    argv: the command line, filled in by parse. ml_collections looks there for
      --config.KEY=VALUE.
  """

  def __init__(self, example: str):
    self.example = example
    self.argv: list[str] = []

  def parse(self, name: str) -> ConfigDict:
    """Reads the config of a name."""
    try:
      return configs.read_config(name)
    except Exception as error:
      raise _NotRead from error  # absl would reword a ValueError

  def flag_type(self) -> str:
    """Returns the flag's type, as --help prints it."""
    return "config"


class _PathParser(flags.ArgumentParser):
  """Expands a leading ~, which shells leave in --FLAG=~/path."""

  def parse(self, path: str) -> str:
    """Expands a path."""
    return expand(path)

  def flag_type(self) -> str:
    """Returns the flag's type, as --help prints it."""
    return "path"


def define_path(
  values: flags.FlagValues, name: str, default: str | None, help_text: str
) -> None:
  """Defines a flag for the path of a file or folder."""
  flags.DEFINE(
    _PathParser(), name, default, help_text, flag_values=values,
    serializer=flags.ArgumentSerializer(),
  )  # fmt: skip


def define_config(values: flags.FlagValues, example: str) -> None:
  """Defines --config=NAME and --config.KEY=VALUE.

  KEY may be one that the config leaves at its default; build checks that the
  key exists. parse fails without --config.
  """
  parser = _ConfigParser(example)
  config_flags.DEFINE_config_file(
    "config",
    help_string=(
      f"A config file, such as {example}, or the name of a shipped config."
    ),
    lock_config=False,
    accept_new_attributes=True,
    flag_values=values,
    sys_argv=parser.argv,
  )
  values["config"].parser = parser


def define_compile_cache(values: flags.FlagValues) -> None:
  """Defines --[no]compile_cache, which a verb follows while it runs."""
  flags.DEFINE_boolean(
    "compile_cache", True,
    "Keeps compiled programs on disk, for the next process to read.",
    flag_values=values,
  )  # fmt: skip


def define_distributed(values: flags.FlagValues) -> None:
  """Defines --distributed and --heartbeat, for join_others."""
  flags.DEFINE_enum(
    "distributed", "auto", distributed.MODES,
    "How processes find each other: auto (variables, SLURM, TPU pod) or off.",
    flag_values=values,
  )  # fmt: skip
  flags.DEFINE_integer(
    "heartbeat", 100,
    "Seconds without a sign of life of one process until all others end.",
    flag_values=values,
  )  # fmt: skip


def join_others(args: flags.FlagValues) -> str:
  """Joins the job that --distributed finds; returns its description."""
  return distributed.start(args.distributed, heartbeat=args.heartbeat)


def chosen_shards(given: str | None, count: int) -> range:
  """Returns the shards that --shard=I/N names; ValueError if it is not that."""
  if given is None:
    return range(count)
  i, _, n = given.partition("/")
  if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
    raise ValueError(
      f"--shard is {given!r}, expected I/N with I from 0 to N - 1, such as 0/8"
    )
  return range(int(i), count, int(n))


def parse(
  define: Callable[[flags.FlagValues], None],
  argv: Sequence[str],
  values: flags.FlagValues | None = None,
) -> flags.FlagValues:
  """Defines a verb's flags and parses a command line.

  Args:
    define: defines the flags on a FlagValues.
    argv: the command line without the program's name.
    values: where to define the flags; by default a new FlagValues, so that no
      global state changes.

  Returns:
    values, whose attributes are the flags' values.

  Raises:
    BadFlags: a flag is unknown or does not parse, the config has no key for a
      --config.KEY, or an argument is no flag.
    ValueError: --config is missing, or its config cannot be read.
  """
  values = flags.FlagValues() if values is None else values
  define(values)
  parser = values["config"].parser if "config" in values else None
  words = ["imagen_jax", *argv]
  if parser:
    parser.argv[:] = words
  failure = None
  try:
    _, *others = values(words)
  except _NotRead as error:
    failure = error.__cause__
  except flags.Error as error:
    raise BadFlags(str(error)) from error
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise BadFlags(_no_place(error, words)) from error
  if isinstance(failure, configs.BadArgument):
    raise BadFlags(str(failure)) from failure
  if failure:
    raise failure
  if others:
    raise BadFlags(f"unexpected argument {others[0]!r}, expected only --flags")
  if parser and not values["config"].present:
    raise ValueError(f"--config is needed, such as {parser.example}")
  return values


def given(args: flags.FlagValues) -> list[str]:
  """Returns the command line that was parsed, without the program's name."""
  return args["config"].parser.argv[1:]


def _no_place(error: Exception, words: Sequence[str]) -> str:
  """Names the override that raised an error of ml_collections."""
  part = str([*error.args, ""][0]).split("\n")[0].strip("'")
  overrides = [word for word in words if "-config." in word]
  overrides = [word for word in overrides if f".{part}." in word] or overrides
  return f"the config has no key for {' or '.join(overrides)}"


def check_at_least(args: flags.FlagValues, name: str, lowest: int) -> None:
  """Raises ValueError for a flag below its lowest value."""
  if args[name].value < lowest:
    raise ValueError(
      f"--{name} is {args[name].value}, expected at least {lowest}"
    )


def check_seed(args: flags.FlagValues) -> None:
  """Raises ValueError for a --seed outside of 0 to 2**32 - 1."""
  check_at_least(args, "seed", 0)
  if args.seed >= 2**32:
    raise ValueError(f"--seed is {args.seed}, expected less than 2**32")


def read_stages(text: str | None) -> tuple[str | None, str | None] | None:
  """Returns the two ends of --stages, None for an end that is left out.

  Raises:
    ValueError: the text is not FIRST:LAST.
  """
  if text is None:
    return None
  first, colon, last = text.partition(":")
  if not colon:
    raise ValueError(f"--stages is {text!r}, expected FIRST:LAST")
  return first or None, last or None
