"""Locks for workdirs on disks and gs://: one run at a time writes there."""

import contextlib
import datetime
import errno
import fcntl
import getpass
import json
import os
import pathlib
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import fsspec
import jax

from imagen_jax.files import reason
from imagen_jax.parallel.processes import gather_host_stats

FILE = "writer.lock"
RENEW = 20.0  # seconds between two renewals of a lock on gs://
LOST = 60.0  # seconds without a renewal until another run may take the lock
_POLL = 1.0  # seconds between two attempts, each made by all processes
# The errors of file systems without locks, such as some NFS and FUSE mounts.
_NO_LOCKS = (
  errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL,
)  # fmt: skip
# The outcomes of an attempt to take a lock.
_TAKEN, _WAITS, _REFUSED, _WITHOUT = range(4)


class Held(Exception):
  """Names who holds a lock.

  Attributes:
    may_end: True if the holder may be dead, so that waiting helps.
  """

  def __init__(self, holder: bytes, *, may_end: bool = False):
    super().__init__(_named(holder))
    self.may_end = may_end


class _Lock(Protocol):
  """A lock of one process among all that may write to a workdir."""

  def take(self) -> None:
    """Tries to take the lock; raises Held, or the error that prevents it."""

  def check(self) -> bool:
    """Raises Held if another run took it; True if the workdir is a new one."""

  def release(self) -> None:
    """Releases the lock."""


class Writer:
  """The right to write to a workdir, which all processes of a run share."""

  def __init__(
    self, workdir: str, lock: _Lock | None, log: Callable[[str], None]
  ):
    self._workdir, self._lock, self._log = workdir, lock, log

  def check(self, step: int) -> None:
    """Checks that no other run writes to the workdir, before a step is saved.

    A workdir that was deleted is made again, which is logged.

    Raises:
      ValueError: another run has taken the workdir; raised on all processes.
    """
    refusal = ""
    if self._lock is not None and jax.process_index() == 0:
      try:
        if self._lock.check():
          self._log(
            f"workdir {self._workdir} was deleted while the run wrote there; "
            f"it is made again, without what it held before step {step}"
          )
      except Held as held:
        refusal = (
          f"workdir {self._workdir} has been taken by another run, {held}; "
          f"this one ends without saving step {step}"
        )
      except Exception:  # stores raise many kinds; the save will report it
        pass
    _, words = gather_host_stats((0,), refusal)
    if words[0]:
      raise ValueError(words[0])


@contextlib.contextmanager
def one_writer(workdir: str, log: Callable[[str], None]) -> Iterator[Writer]:
  """Holds a workdir for a run, so that no other run writes there meanwhile.

  Process 0 holds the lock for all processes, and all raise alike if it cannot.
  On a file system without locks the run continues without one, which is
  logged. On gs:// the lock of a killed run expires after LOST seconds; a new
  run waits until then.

  Args:
    workdir: a folder, which is made, or a URL such as gs://bucket/folder.
    log: logs a line.

  Yields:
    The right to write to the workdir.

  Raises:
    ValueError: another run holds the workdir, or it cannot be written.
  """
  lock, waiting = _lock(workdir), False
  while True:
    code, words = _attempt(workdir, lock)
    counts, said = gather_host_stats((code,), words)
    code, words = int(counts[0][0]), said[0]
    if code == _REFUSED:
      raise ValueError(words)
    if words and not waiting:
      log(words)
    if code != _WAITS:
      break
    waiting = True
    time.sleep(_POLL)
  try:
    yield Writer(workdir, None if code == _WITHOUT else lock, log)
  finally:
    if jax.process_index() == 0 and lock is not None:
      lock.release()


def _lock(workdir: str) -> _Lock | None:
  """Makes a workdir's kind of lock, not yet taken; None without a kind."""
  scheme, remote, _ = workdir.partition("://")
  if not remote:
    return FileLock(pathlib.Path(workdir))
  return ObjectLock(f"{workdir}/{FILE}") if scheme == "gs" else None


def _attempt(workdir: str, lock: _Lock | None) -> tuple[int, str]:
  """Tries once to take a lock, in process 0; returns the outcome and a line."""
  without = "no lock protects it, expected that no other run writes there"
  if jax.process_index() > 0:
    return _TAKEN, ""
  if lock is None:
    return _WITHOUT, f"workdir {workdir} is in a store without locks: {without}"
  try:
    lock.take()
  except Held as held:
    if held.may_end:
      return _WAITS, (
        f"workdir {workdir} is held by {held}; waiting up to {LOST:.0f} s for "
        "a sign of life of that run"
      )
    return _REFUSED, (
      f"workdir {workdir} is held by {held}, expected one writer: end that run "
      "or name another workdir"
    )
  except ImportError as error:  # no gcsfs; etils reads gs:// without it
    return _WITHOUT, f"workdir {workdir}: {reason(error)}; {without}"
  except Exception as error:  # stores raise many kinds
    if isinstance(error, OSError) and error.errno in _NO_LOCKS:
      return _WITHOUT, (
        f"workdir {workdir} is on a file system without locks "
        f"({reason(error)}): {without}"
      )
    return _REFUSED, f"workdir {workdir} cannot be written: {reason(error)}"
  return _TAKEN, ""


class FileLock:
  """A lock on a file in a local folder.

  The kernel releases the lock when the process ends, even by kill -9. The file
  names the holder. release() removes the file, and also the folders that take()
  made if they are empty.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder, self._path = folder.absolute(), folder.absolute() / FILE
    self._file = -1
    self._made: list[pathlib.Path] = []  # by take(), innermost first
    self._place: os.stat_result | None = None  # the folder's

  def take(self) -> None:
    """Makes the folder and locks the file; raises Held if it is locked."""
    above = [self._folder, *self._folder.parents]
    self._made = [path for path in above if not os.path.lexists(path)]
    self._folder.mkdir(parents=True, exist_ok=True)
    while not self._open():
      pass
    self._place = os.stat(self._folder)

  def _open(self) -> bool:
    """Locks the file; returns False if its last holder removed it meanwhile."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
      file = os.open(self._path, flags, 0o666)
    except OSError as error:
      if error.errno in (errno.ELOOP, errno.ENXIO):
        raise ValueError(f"{FILE} is no file of a run") from error
      raise
    try:
      if not stat.S_ISREG(os.fstat(file).st_mode):
        raise ValueError(f"{FILE} is no file of a run")
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise Held(os.pread(file, 1000, 0)) from error
      if not self._is_at_path(file):
        return False
      with contextlib.suppress(OSError):  # a full disk; the lock still holds
        os.ftruncate(file, 0)
        os.pwrite(file, _holder(), 0)
      self._file, file = file, -1
      return True
    finally:
      if file >= 0:
        os.close(file)

  def check(self) -> bool:
    """Takes the lock again if its file is gone; True if the folder was too."""
    if self._is_at_path(self._file):
      return False
    before = self._place
    os.close(self._file)
    self._file = -1
    self.take()
    return not os.path.samestat(before, self._place)

  def _is_at_path(self, file: int) -> bool:
    try:
      there = os.stat(self._path, follow_symlinks=False)
    except FileNotFoundError:
      return False
    return os.path.samestat(there, os.fstat(file))

  def release(self) -> None:
    """Removes the file, releases the lock and removes empty folders it made."""
    if self._file >= 0:
      with contextlib.suppress(OSError):
        if self._is_at_path(self._file):
          os.unlink(self._path)
      os.close(self._file)
      self._file = -1
    for folder in self._made:
      with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()


class ObjectLock:
  """A lock that is an object on gs://, which its holder renews.

  Each renewal makes a new generation of the object. A process needs the current
  generation to make the next, so that the store decides between two that try.
  """

  def __init__(self, url: str):
    self._bucket, _, self._key = url.removeprefix("gs://").partition("/")
    self._generation = ""  # of this run's object; empty while not held
    self._holder = b""
    # The generation of another run's object, and when it was first seen.
    self._seen, self._since = "", 0.0
    self._lost = False  # another run made a generation after this run's
    self._mutex = threading.Lock()
    self._end = threading.Event()
    self._thread: threading.Thread | None = None

  def take(self) -> None:
    """Makes the object; raises Held while another run may still renew it."""
    self._store = fsspec.filesystem("gcs")
    self._holder, found = _holder(), self._read()
    if found is not None:
      generation, holder = found
      now = time.monotonic()
      if self._seen and generation != self._seen:
        raise Held(holder)  # it was renewed, so its holder is alive
      if not self._seen:
        self._seen, self._since = generation, now
      if now - self._since < LOST:
        raise Held(holder, may_end=True)
    try:
      self._write(found[0] if found else "0")
    except FileExistsError as error:  # 412: another was faster
      raise Held(b"") from error
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def check(self) -> bool:
    """Raises Held if the object is no longer this run's; else returns False."""
    with self._mutex:
      found = self._read()
      self._compare(found)
    if self._lost:
      raise Held(found[1] if found else b"")
    return False

  def release(self) -> None:
    """Ends the renewals, and deletes the object if it is still held."""
    if self._thread is None:
      return
    self._end.set()
    self._thread.join()
    if not self._lost:
      with contextlib.suppress(Exception):  # stores raise many kinds
        self._store.call(
          "DELETE", "b/{}/o/{}", self._bucket, self._key,
          ifGenerationMatch=self._generation,
        )  # fmt: skip

  def _renew(self) -> None:
    """Makes a new generation every RENEW seconds, in a thread."""
    while not self._end.wait(RENEW) and not self._lost:
      with self._mutex, contextlib.suppress(Exception):  # tries again later
        try:
          self._write(self._generation)
        except FileExistsError:
          self._compare(self._read())

  def _compare(self, found: tuple[str, bytes] | None) -> None:
    """Notes whether the object that was read is still this process's own."""
    if found is None or found[1] != self._holder:
      self._lost = True
    else:  # still held, even if the answer to a renewal was lost
      self._generation = found[0]

  def _read(self) -> tuple[str, bytes] | None:
    """Returns the object's generation and content; None without an object."""
    url = self._store.url(f"{self._bucket}/{self._key}")
    try:
      headers, data = self._store.call("GET", url)
    except FileNotFoundError:
      return None
    return headers["x-goog-generation"], data

  def _write(self, after: str) -> None:
    """Makes the generation that follows `after`, or raises FileExistsError."""
    url = self._store.url(f"{self._bucket}/{self._key}")
    server = url.partition("/download/storage/")[0]
    _, answer = self._store.call(
      "POST", server + "/upload/storage/v1/b/{}/o", self._bucket,
      uploadType="media", name=self._key, ifGenerationMatch=after,
      data=self._holder,
    )  # fmt: skip
    self._generation = json.loads(answer)["generation"]


def _holder() -> bytes:
  """Describes this process to other runs, with a unique token."""
  try:
    user = getpass.getuser()
  except (KeyError, OSError):  # a container's user id may have no name
    user = str(os.getuid())
  now = datetime.datetime.now(datetime.UTC)
  about = {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "user": user,
    "since": f"{now:%Y-%m-%d %H:%M:%S} UTC",
    "token": secrets.token_hex(8),
  }
  return json.dumps(about).encode()


def _named(holder: bytes) -> str:
  """Names a holder from a lock's content, which is not trusted."""
  try:
    about = json.loads(holder)
    words = [str(about[key]) for key in ("host", "pid", "user", "since")]
  except (ValueError, KeyError, TypeError, RecursionError):
    return "a process that gives no name"
  host, pid, user, since = (
    "".join(c if c.isprintable() else "?" for c in word[:60]) for word in words
  )
  return f"process {pid} of user {user} on host {host} since {since}"
