"""The verbs as programs: how they start, fail in one sentence, and end."""

import contextlib
import dataclasses
import logging as std_logging
import os
import pathlib
import re
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from typing import NoReturn

import fsspec
import jax
from absl import app, flags, logging
from etils import epath

from imagen_jax.cli import command_line
from imagen_jax.files import reason
from imagen_jax.parallel import compile_cache, memory, processes
from imagen_jax.progress import print_line

# The extra that installs each package that the core does not need.
EXTRAS = {
  "array_record": "train",
  "gcsfs": "gcs",
  "grain": "train",
  "matplotlib": "plots",
  "pyarrow": "train",
  "tensorboard": "train",
  "tensorflow_datasets": "train",
}
READ_ONLY = {"hf", "package"}  # schemes that cannot be written to
LOST = 76  # exit code if another process is lost; start the job again
# Codes of JAX's errors that no other process can cause. The same command fails
# again in the same way.
OWN_ERRORS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


@dataclasses.dataclass(frozen=True)
class Verb:
  """Holds a verb, to call from Python or to run as a program.

  Attributes:
    define_flags: defines the verb's flags on a FlagValues.
    act: does what the parsed flags ask for.
  """

  define_flags: Callable[[flags.FlagValues], None]
  act: Callable[[flags.FlagValues], None]

  def __call__(self, argv: Sequence[str]) -> None:
    """Runs a command line such as ["--config=shapes"].

    Raises:
      ValueError: a mistake of the user, in the sentence that run prints.
    """
    self.run(command_line.parse(self.define_flags, argv))

  def run(self, args: flags.FlagValues) -> None:
    """Runs parsed flags, with or without the compile cache as they ask."""
    asked = "compile_cache" in args and args.compile_cache
    with contextlib.nullcontext() if asked else compile_cache.disabled():
      self.act(args)


def verb(
  define_flags: Callable[[flags.FlagValues], None],
) -> Callable[[Callable[[flags.FlagValues], None]], Verb]:
  """Makes a Verb of the decorated function, which takes the parsed flags."""
  return lambda act: Verb(define_flags, act)


def run(main: Verb) -> None:
  """Runs a verb with sys.argv, as the process's only program.

  Its flags join those that absl and other libraries define for all programs,
  such as --help. as_exit_codes gives the exit codes.
  """

  def parse(argv: list[str]) -> flags.FlagValues:
    with as_exit_codes():
      return command_line.parse(main.define_flags, argv[1:], flags.FLAGS)

  def act(args: flags.FlagValues) -> None:
    with as_exit_codes():
      main.run(args)

  with quiet_libraries(), stores_by_gcsfs(), lasting_output():
    app.run(act, flags_parser=parse)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
  """Keeps libraries from printing notes in the block, which is a whole program.

  absl logs from warnings upwards. PIL does not warn of large or damaged images:
  large images are decoded, and damaged ones are bad records.
  """
  before = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  try:
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", module=r"PIL\.")
      yield
  finally:
    logging.set_verbosity(before)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
  """Keeps the block running if its output fails; the block is a whole program.

  Characters that the encoding lacks are escaped. Output that nobody reads any
  more is dropped, so that Python does not fail because of it.
  """
  streams = [stream for stream in (sys.stdout, sys.stderr) if stream]
  before = [getattr(stream, "errors", None) for stream in streams]
  for stream in streams:
    if hasattr(stream, "reconfigure"):
      stream.reconfigure(errors="backslashreplace")
  try:
    yield
  finally:
    for stream, errors in zip(streams, before, strict=True):
      try:
        stream.flush()
      except OSError:
        with contextlib.suppress(OSError, ValueError):
          os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
      except ValueError:  # the stream is closed
        continue
      if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=errors)


@contextlib.contextmanager
def as_exit_codes() -> Iterator[None]:
  """Turns an error that needs no traceback into a sentence and an exit code.

  The exit codes are:
    2: bad flags.
    1: any other ValueError; a file that cannot be read or written, also on
      gs://; a missing package that an extra installs; a program that a device
      has not enough memory for, or that the compiler refuses.
    130: an interruption.
    LOST: any other failed computation of many processes.
  """
  try:
    yield
  except command_line.BadFlags as error:
    fail(str(error), 2)
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    code, said = _jax_code(error), str(error).split("\n")[0][:200]
    if code in OWN_ERRORS:
      with processes.ending_together():
        if code == "RESOURCE_EXHAUSTED":
          fail(memory.too_large(str(error)), 1)
        fail(f"JAX cannot compile or run this: {said}", 1)
    if code and jax.distributed.is_initialized():
      fail(
        f"a computation failed, perhaps because another process ended: {said}",
        LOST,
      )
    if not isinstance(error, ValueError):
      raise
    fail(str(error), 1)
  except KeyboardInterrupt:
    fail("interrupted", 130)
  except ImportError as error:
    extra = EXTRAS.get((error.name or "").partition(".")[0])
    if extra is None:
      raise
    fail(
      f"the package {error.name} is not installed, expected the extra {extra}: "
      f"pip install 'imagen_jax[{extra}]'",
      1,
    )
  except Exception as error:
    if _is_of_a_store(error):
      fail(reason(error), 1)
    if not isinstance(error, OSError) or error.filename is None:
      raise
    fail(f"{error.filename}: {error.strerror}", 1)


@contextlib.contextmanager
def stores_by_gcsfs() -> Iterator[None]:
  """Lets the block access gs:// by gcsfs, without cached listings of files."""
  settings = fsspec.config.conf.setdefault("gcs", {})
  # Otherwise etils uses TensorFlow where that is installed.
  added = "EPATH_USE_TF" not in os.environ
  os.environ.setdefault("EPATH_USE_TF", "0")
  # A cached listing would lack the files that TensorStore and other processes
  # write.
  cached = settings.get("use_listings_cache")
  settings.setdefault("use_listings_cache", False)
  # These log tracebacks of errors that are printed in a sentence.
  logs = [std_logging.getLogger(name) for name in ("fsspec", "gcsfs")]
  levels = [log.level for log in logs]
  for log in logs:
    log.setLevel(std_logging.CRITICAL)
  try:
    yield
  finally:
    for log, level in zip(logs, levels, strict=True):
      log.setLevel(level)
    if cached is None:
      del settings["use_listings_cache"]
    if added:
      del os.environ["EPATH_USE_TF"]


@contextlib.contextmanager
def profiler_server(port: int | None) -> Iterator[None]:
  """Lets xprof and TensorBoard trace this process within the block.

  Anyone who reaches the port can do so: it listens on all interfaces.

  Args:
    port: a TCP port; None serves nothing.

  Raises:
    ValueError: the port cannot be used.
  """
  if port is None:
    yield
    return
  try:  # JAX would only log that
    with socket.socket(socket.AF_INET6) as trial:
      trial.bind(("::", port))
  except (OSError, OverflowError) as error:
    raise ValueError(
      f"--profiler_port {port} cannot be used, expected a free port: {error}"
    ) from error
  jax.profiler.start_server(port)
  try:
    yield
  finally:
    jax.profiler.stop_server()


def run_and_leave(main: Verb, well: Container[int]) -> None:
  """Runs a verb and ends the process, even if a thread hangs in reading data.

  Args:
    main: the verb.
    well: the exit codes with which one of many processes leaves the job in
      order. With any other code it ends at once, since the other processes may
      be waiting for it.
  """
  try:
    run(main)
  except SystemExit as end:
    code = end.code or 0
    if code in well and jax.distributed.is_initialized():
      jax.distributed.shutdown()
    leave(code)


def check_bucket(name: str, folder: str | os.PathLike) -> None:
  """Raises ValueError if the bucket of a folder on gs:// does not exist."""
  scheme, remote, rest = os.fspath(folder).partition("://")
  if not remote:
    return
  check_scheme(name, folder)
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
  """Raises ValueError if a folder cannot be made or written; makes nothing yet.

  For a folder on gs:// only the bucket is checked.
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


def check_scheme(name: str, path: str | os.PathLike) -> None:
  """Raises ValueError for a path that can only be read, such as hf://."""
  if os.fspath(path).partition("://")[0] in READ_ONLY:
    raise ValueError(
      f"{name} {path} can only be read, expected a path of a disk or gs://"
    )


def check_output(name: str, path: str | os.PathLike, ending: str = "") -> None:
  """Checks that a file can be written, before the work; makes nothing yet.

  Args:
    name: the name of the path in error messages, such as "output".
    path: where the file is to be written.
    ending: the ending that the file's name must have, for its readers.

  Raises:
    ValueError: the path is a folder's, has another ending or cannot be
      written.
  """
  text = os.fspath(path)
  folder, _, file = text.rpartition("/")
  check_scheme(name, text)
  check_writable(name, folder or ("/" if text.startswith("/") else "."))
  try:
    is_folder = not file or epath.Path(text).is_dir()
  except Exception as error:  # stores raise many kinds
    raise ValueError(
      f"{name} {text} cannot be reached: {reason(error)}"
    ) from error
  if is_folder:
    example = f"{text.rstrip('/')}/{name}{ending}"
    raise ValueError(
      f"{name} {text} is a folder, expected a file such as {example}"
    )
  if not file.endswith(ending):
    raise ValueError(f"{name} {text} has the wrong ending, expected {ending}")


def check_folder(name: str, folder: str | os.PathLike) -> None:
  """Checks that a folder can be written, as check_output does for a file."""
  if "://" not in os.fspath(folder) and os.path.isfile(folder):
    raise ValueError(f"{name} {folder} is a file, expected a folder")
  check_writable(name, folder)


def _jax_code(error: Exception) -> str | None:
  """Returns the code of JAX's errors, "INTERNAL" if it has none, else None.

  Reading the result of a failed computation raises a ValueError that begins
  with a code, such as "UNKNOWN: Gloo AllGather failed".
  """
  if code := re.match("([A-Z_]{5,}): ", str(error)):
    return code[1]
  by_jax = isinstance(error, jax.errors.JaxRuntimeError)
  return "INTERNAL" if by_jax else None


def _is_of_a_store(error: BaseException) -> bool:
  """Returns True if the library for gs:// raised the error.

  Its errors are of many types, also of Python and other libraries.
  """
  frames = traceback.walk_tb(error.__traceback__)
  names = (frame.f_globals.get("__name__", "") for frame, _ in frames)
  return any(name.split(".")[0] in ("fsspec", "gcsfs") for name in names)


def fail(message: str, code: int) -> None:
  """Prints an error in one line on standard error, and exits."""
  if sys.stderr is not None:
    print_line("error: " + " ".join(message.split()), sys.stderr)
  sys.exit(code)


def leave(code: int) -> NoReturn:
  """Ends the process at once, even if one of its threads hangs."""
  for stream in filter(None, (sys.stdout, sys.stderr)):
    with contextlib.suppress(OSError, ValueError):  # disk full, or closed
      stream.flush()
  os._exit(code)
