"""What the verbs share as programs: flags, and errors in one sentence."""

import contextlib
import logging as std_logging
import os
import pathlib
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Container
from typing import Any, NoReturn

import fsspec
import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from imagen_jax.parallel import distributed
from imagen_jax.parallel.processes import reason

flags.disclaim_key_flags()  # --config is the verb's, in --help

LOST = 76  # exit code of who lost another process, for whom to start it again


def run(main: Callable[[], None]) -> None:
  """Runs main(); a ValueError ends the program with its sentence, exit 1.

  So does a file that cannot be read or written, on gs:// too, and an
  interruption. A flag that does not exist or parse ends it likewise, exit 2; a
  computation of many processes that failed, LOST.
  """
  logging.set_verbosity(logging.WARNING)
  _settle_stores()

  def guarded(argv: list[str]) -> None:
    if len(argv) > 1:
      fail(f"unexpected argument {argv[1]!r}, expected only --flags", 2)
    try:
      main()
    except (ValueError, jax.errors.JaxRuntimeError) as error:
      if _is_of_many(error):
        said = str(error).split("\n")[0][:200]
        fail(f"computing failed, perhaps because a process ended: {said}", LOST)
      if not isinstance(error, ValueError):
        raise
      fail(str(error), 1)
    except KeyboardInterrupt:
      fail("interrupted", 130)
    except Exception as error:
      if _is_of_a_store(error):
        fail(reason(error), 1)
      if not isinstance(error, OSError) or error.filename is None:
        raise
      fail(f"{error.filename}: {error.strerror}", 1)

  app.run(guarded, flags_parser=parse)


def _settle_stores() -> None:
  """Makes this process read and write gs:// by gcsfs, as it is at each time."""
  # Else etils takes TensorFlow where that is installed.
  os.environ.setdefault("EPATH_USE_TF", "0")
  # A cached list of files would lack what TensorStore and other processes
  # write.
  settings = fsspec.config.conf.setdefault("gcs", {})
  settings.setdefault("use_listings_cache", False)
  # They log tracebacks of errors that are printed in a sentence.
  for name in ("fsspec", "gcsfs"):
    std_logging.getLogger(name).setLevel(std_logging.CRITICAL)


def run_and_leave(main: Callable[[], None], well: Container[int]) -> None:
  """As run, but no thread that hangs, as in reading data, keeps the process.

  One of many processes takes leave of the others if the exit code is one of
  `well`; else it ends at once, for they may be waiting for it.
  """
  try:
    run(main)
  except SystemExit as end:
    code = end.code or 0
    if code in well and jax.distributed.is_initialized():
      jax.distributed.shutdown()
    leave(code)


def define_config(example: str) -> Callable[[], Any]:
  """Flags --config=FILE and --config.KEY=VALUE; returns what reads them.

  KEY may be one that FILE leaves at its default. Whether there is such a key
  is for build to say. Reading raises ValueError if there is no config.
  """
  flag = config_flags.DEFINE_config_file(
    "config",
    help_string=f"A config file, such as {example}.",
    lock_config=False,
    accept_new_attributes=True,
  )

  def read() -> Any:
    if not flags.FLAGS["config"].present:
      raise ValueError(f"--config is needed, such as {example}")
    try:
      usable = hasattr(flag.value, "items")
    except OSError as error:  # a file that could not be read is told of here
      path = flags.FLAGS["config"].config_filename
      raise ValueError(
        f"config {path!r} cannot be read, expected a file such as {example}"
      ) from error
    if not usable:
      raise ValueError(
        f"get_config() returned {flag.value!r}, expected a ConfigDict"
      )
    return flag.value

  return read


def define_distributed() -> Callable[[], str]:
  """Flags --distributed and --heartbeat; returns what joins the job of them."""
  mode = flags.DEFINE_enum(
    "distributed", "auto", distributed.MODES,
    "How processes find each other: auto (variables, SLURM, TPU pod) or off.",
  )  # fmt: skip
  heartbeat = flags.DEFINE_integer(
    "heartbeat", 100,
    "Seconds without a sign of life of one process until all others end.",
  )  # fmt: skip
  return lambda: distributed.start(mode.value, heartbeat=heartbeat.value)


def parse(argv: list[str]) -> list[str]:
  """Flags, among them --config and its overrides; exit 2 on a bad one."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    if "whilst parsing config file" in str(error):
      said = sentence_of_config(error)
      if said is None:
        raise  # the config is a program, and this its traceback
      fail(said, 2)
    fail(str(error), 2)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == "get_config" for frame in frames):
      raise
    part = str([*error.args, ""][0]).split("\n")[0].strip("'")
    overrides = [arg for arg in argv if "-config." in arg]
    overrides = [arg for arg in overrides if f".{part}." in arg] or overrides
    fail(f"the config has no place for {' or '.join(overrides)}", 2)


def sentence_of_config(error: BaseException) -> str | None:
  """What get_config itself raised a ValueError to say, of its argument."""
  while error.__context__ is not None:
    error = error.__context__
  *_, frame = traceback.extract_tb(error.__traceback__)
  by_itself = frame.name == "get_config" and isinstance(error, ValueError)
  return str(error) if by_itself else None


def check_at_least(flag: flags.FlagHolder, lowest: int) -> None:
  """ValueError for a flag below its lowest value."""
  if flag.value < lowest:
    raise ValueError(
      f"--{flag.name} is {flag.value}, expected at least {lowest}"
    )


def check_seed(flag: flags.FlagHolder) -> None:
  """ValueError for a seed that is not of 32 bits."""
  check_at_least(flag, 0)
  if flag.value >= 2**32:
    raise ValueError(f"--{flag.name} is {flag.value}, expected less than 2**32")


def check_bucket(name: str, folder: str | os.PathLike) -> None:
  """ValueError if a folder's bucket, on gs:// and the like, is not there."""
  scheme, remote, rest = os.fspath(folder).partition("://")
  if not remote:
    return
  bucket = epath.Path(f"{scheme}://{rest.partition('/')[0]}")
  try:
    found = bucket.exists()
  except Exception as error:  # stores raise many kinds
    raise ValueError(
      f"{name} {folder} cannot be reached: {reason(error)}"
    ) from error
  if not found:
    raise ValueError(f"{name} {folder}: there is no bucket {bucket}")


def check_writable(name: str, folder: str | os.PathLike) -> None:
  """ValueError if a folder cannot be made or written; makes nothing yet.

  Of one on gs:// and the like, only the bucket is looked for.
  """
  if "://" in os.fspath(folder):
    return check_bucket(name, folder)
  path = pathlib.Path(folder).absolute()
  while not os.path.lexists(path):
    path = path.parent
  try:
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise ValueError(
      f"{name} {folder} cannot be written: {error.strerror}"
    ) from error


def _is_of_many(error: Exception) -> bool:
  """Whether one of many processes raised it as it computed with the others.

  To read what failed to compute raises a ValueError that begins with a code,
  as "UNKNOWN: Gloo AllGather failed".
  """
  if not jax.distributed.is_initialized():
    return False
  by_jax = isinstance(error, jax.errors.JaxRuntimeError)
  return by_jax or bool(re.match("[A-Z_]{5,}: ", str(error)))


def _is_of_a_store(error: BaseException) -> bool:
  """Returns True if the library raised it that reads and writes gs://.

  Its errors are of many kinds, of Python's and other libraries' too.
  """
  frames = traceback.walk_tb(error.__traceback__)
  names = (frame.f_globals.get("__name__", "") for frame, _ in frames)
  return any(name.split(".")[0] in ("fsspec", "gcsfs") for name in names)


def fail(message: str, code: int) -> None:
  """Says why on standard error, in one line, and exits."""
  print("error: " + " ".join(message.split()), file=sys.stderr)
  sys.exit(code)


def leave(code: int) -> NoReturn:
  """Ends the process at once, even if a thread of it hangs."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError):  # as of a full disk
      stream.flush()
  os._exit(code)
