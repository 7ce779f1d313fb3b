"""Atomic writing and safe reading of files, on disks and in object stores."""

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath

# Links in these folders are open files, which must not be replaced.
_STREAMS = ("/dev", "/dev/fd", "/proc/self/fd")
_MOST_JSON = 2**24  # bytes; the largest index or config has 1 % as many
_MOST_NESTED = 100  # levels of JSON; the deepest config has ten


def expand(path: str | os.PathLike) -> str:
  """Expands a leading ~ to the home folder; gs:// paths stay as they are.

  Raises:
    ValueError: the home folder is unknown, as without HOME in a container.
  """
  given = os.fspath(path)
  found = os.path.expanduser(given)
  mine = given.split("/")[0] == "~"
  if found.startswith("~") or (mine and os.environ.get("HOME") == ""):
    raise ValueError(
      f"path {given} begins with a home folder that is not known, expected "
      "HOME to be set, or ./ before a name that begins with ~"
    )
  return found


def write(
  path: str | os.PathLike, data: bytes | str, *, parents: bool = False
) -> None:
  """Writes a file atomically: on failure an old file stays unchanged.

  A link is replaced, not followed. A pipe or device, such as /dev/stdout, is
  written directly.

  Args:
    path: a local path, or a path of a store such as gs://.
    data: bytes, or text to encode as UTF-8.
    parents: creates missing folders.

  Raises:
    ValueError: "PATH cannot be written: REASON".
  """
  path = epath.Path(expand(path))
  data = data.encode() if isinstance(data, str) else data
  with _cannot_write(path):
    if parents:
      path.parent.mkdir(parents=True, exist_ok=True)
    if not is_remote(path) and _is_stream(path):
      with open(path, "wb") as file:
        file.write(data)
    else:
      _replace(path, data)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[str]:
  """Lets the block write a local file, and then puts it in place atomically.

  This is for libraries that write files themselves; `write` is for all else. If
  the block fails, an old file stays unchanged. Missing folders are created.

  Args:
    path: a local path, or a path of a store such as gs://.

  Raises:
    ValueError: "PATH cannot be written: REASON". Errors of the block are not
      changed.
  """
  path = epath.Path(expand(path))
  with contextlib.ExitStack() as stack:
    with _cannot_write(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      folder = path.parent
      if is_remote(path):
        folder = stack.enter_context(tempfile.TemporaryDirectory())
      part = os.path.join(folder, f".{secrets.token_hex(8)}.part")
      open(part, "xb").close()  # O_CREAT | O_EXCL
      stack.callback(lambda: os.path.exists(part) and os.unlink(part))
    yield part
    with _cannot_write(path):
      if is_remote(path):
        # A store shows an object once it is complete.
        with open(part, "rb") as read, path.open("wb") as written:
          shutil.copyfileobj(read, written, 2**24)
      else:
        os.replace(part, path)


@contextlib.contextmanager
def _cannot_write(path: epath.Path) -> Iterator[None]:
  """Converts any error of the block to "PATH cannot be written: REASON"."""
  try:
    yield
  except Exception as error:  # object stores raise many kinds
    raise ValueError(f"{path} cannot be written: {reason(error)}") from error


@contextlib.contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[str]:
  """Gives a local path of a file, for libraries that read no store.

  Raises:
    OSError: the file cannot be read.
  """
  path = epath.Path(expand(path))
  if not is_remote(path):
    yield os.fspath(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = os.path.join(folder, "copy")
    with path.open("rb") as read, open(copy, "xb") as written:
      shutil.copyfileobj(read, written, 2**24)
    yield copy


def _replace(path: epath.Path, data: bytes) -> None:
  """Writes a file beside the path, and renames it."""
  # The random name prevents an attacker from placing a link there.
  part = path.with_name(f".{secrets.token_hex(8)}.part")
  try:
    if is_remote(path):
      part.write_bytes(data)
      part.replace(path)
    else:
      with open(part, "xb") as file:  # O_CREAT | O_EXCL
        file.write(data)
      os.replace(part, path)
  except BaseException:
    with contextlib.suppress(Exception):
      part.unlink()
    raise


def is_remote(path: str | os.PathLike) -> bool:
  """Tests whether a path is of an object store, such as gs://."""
  return "://" in os.fspath(path)


def _is_stream(path: epath.Path) -> bool:
  """Tests whether a path is a pipe, a device or an open file."""
  if os.path.dirname(os.path.abspath(path)) in _STREAMS:
    return True
  return os.path.exists(path) and not (
    os.path.isfile(path) or os.path.isdir(path)
  )


def reason(error: BaseException) -> str:
  """Returns the reason of an error in one short line.

  For an error of the operating system, it is the system's message. For any
  other error, it is the error's type and message.
  """
  # Remove the request, which gcsfs puts before a store's answer, and the full
  # answer, which TensorStore puts after the reason.
  said = re.sub(r"^(Forbidden|Bad Request): .*\n", r"\1: ", str(error))
  said = re.split(r" \[\w+='|\n", said.strip())[0]
  if len(said) > 240:  # TensorStore's ends with the cause, so keep both ends
    said = f"{said[:120]} ... {said[-120:]}"
  if code := re.search(r"os_error_code='(\d+)'", str(error)):
    return os.strerror(int(code[1]))
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return f"{type(error).__name__}: {said}"


def quote(text: object, limit: int = 80) -> str:
  """Quotes a text so that it is short and safe to log.

  A text of a dataset or a file may hold line ends, terminal escape sequences,
  or megabytes.

  Args:
    text: the text, or an object to show as str(text).
    limit: the most characters to return, at least 16. A cut text ends in "...".

  Returns:
    Python's repr: all but printable characters are escaped.
  """
  text = text if isinstance(text, str) else str(text)
  shown = repr(text[: limit + 1])
  count = min(len(text), limit)
  while len(shown) > limit:
    count -= 1
    shown = f"{text[:count]!r}..."
  return shown


def read_lines(
  path: str | os.PathLike, name: str, *, blanks: str | None = None
) -> list[str]:
  r"""Reads the lines of a UTF-8 text, numbered as in an editor.

  Only \n ends a line: other Unicode separators are part of a caption.

  Args:
    path: a local path, which may begin with ~, or a path of a store such as
      gs://.
    name: the kind of file, such as "captions", for messages.
    blanks: the characters to strip from a line; None strips all whitespace,
      such as \r.

  Returns:
    All lines, with blank ones, but without the empty end after the last \n.

  Raises:
    ValueError: the file cannot be read, or is not UTF-8 text.
  """
  try:
    data = epath.Path(expand(path)).read_bytes()
    text = data.decode("utf-8-sig")
  except OSError as error:
    raise ValueError(
      f"{name} {path} cannot be read: {reason(error)}"
    ) from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{name} {path} is not UTF-8 text") from error
  if "\0" in text:
    raise ValueError(f"{name} {path} is not UTF-8 text")
  lines = [line.strip(blanks) for line in text.split("\n")]
  return lines if lines[-1] else lines[:-1]


def read_json(path: str | os.PathLike, name: str) -> Any:
  """Reads a JSON file that may come from anyone.

  Args:
    path: a local path, or a path of a store such as gs://.
    name: the kind of file, such as "weights", for messages.

  Returns:
    The value that the file holds.

  Raises:
    ValueError: the file cannot be read, is too large, or is not JSON.
  """
  try:
    with epath.Path(path).open("rb") as file:
      data = file.read(_MOST_JSON + 1)
  except OSError as error:
    raise ValueError(
      f"{name} {path} cannot be read: {reason(error)}"
    ) from error
  if len(data) > _MOST_JSON:
    raise ValueError(
      f"{name} {path} has over {_MOST_JSON >> 20} MiB, expected less"
    )
  return parse_json(data, f"{name} {path}")


def parse_json(data: str | bytes, what: str) -> Any:
  """Parses JSON that may come from anyone.

  Args:
    data: the text, or its bytes.
    what: the source of the text, for messages.

  Returns:
    The value, nested at most 100 levels deep, so that walks through it succeed.

  Raises:
    ValueError: the text is not JSON, or is nested too deeply.
  """
  try:
    value = json.loads(data)
    level = [value]
    for _ in range(_MOST_NESTED):
      level = [child for parent in level for child in _children(parent)]
      if not level:
        return value
  except ValueError as error:
    raise ValueError(f"{what} is not JSON: {error}") from error
  except RecursionError:
    pass
  raise ValueError(
    f"{what} is nested too deeply, expected at most {_MOST_NESTED} levels"
  )


def _children(value: Any) -> list[Any]:
  """Returns the elements of a JSON object or array."""
  if isinstance(value, dict):
    return list(value.values())
  return value if isinstance(value, list) else []
