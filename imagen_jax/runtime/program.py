"""What the verbs share as programs: flags, and errors in one sentence."""

import sys
from collections.abc import Callable

from absl import app, flags, logging


def run(main: Callable[[], None]) -> None:
  """Runs main(); a ValueError ends the program with its sentence, exit 1.

  A flag or config override that does not exist ends it likewise, exit 2.
  """
  logging.set_verbosity(logging.WARNING)

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      fail(f"unexpected argument {argv[1]!r}, expected only --flags", 2)
    try:
      main()
    except ValueError as error:
      fail(str(error), 1)

  app.run(guarded, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
  """Flags, among them --config and its overrides; exit 2 on a bad one."""
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
    fail(str(error).strip("'\""), 2)
  except flags.Error as error:
    fail(str(error), 2)


def fail(message: str, code: int) -> None:
  """Says why on standard error, in one line, and exits."""
  print("error: " + " ".join(message.split()), file=sys.stderr)
  sys.exit(code)
