"""Keeps compiled programs on disk, so that the next process need not compile.

It is JAX's persistent cache in a folder of its own. Entries hold machine code:
anyone who can write them can run code, so the folder must be the user's alone.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator

import jax
import jaxlib
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

from imagen_jax import files

VARIABLE = "IMAGEN_JAX_COMPILE_CACHE"  # a folder, or "off"
MOST_BYTES = 2**32  # of a folder; the oldest entries beyond it are removed
_MODULE = "imagen_jax.parallel.compile_cache"  # also as a program
_OFF = ("off", "0", "false", "no")
_SETTINGS = {
  "jax_persistent_cache_min_compile_time_secs": 0.1,
  "jax_persistent_cache_min_entry_size_bytes": 0,
}
_PROBED = 600.0  # seconds after which a probe without a result is repeated
_lock = threading.RLock()  # the settings are the process's
_depth = 0  # of nested blocks
_disabled = 0  # blocks that turn the cache off
_probes: list[subprocess.Popen] = []  # which outlive this process
_made: set[str] = set()  # folders that were empty when this process came


@contextlib.contextmanager
def disabled() -> Iterator[None]:
  """Turns the cache off within the block, also where it is asked for."""
  global _disabled
  with _lock:
    _disabled += 1
  try:
    yield
  finally:
    with _lock:
      _disabled -= 1


@contextlib.contextmanager
def enabled(workdir: str = "") -> Iterator[None]:
  """Reads what the block compiles from the cache, and writes it there.

  A cache that the user has set up with JAX stays as it is. Where no folder can
  be trusted, the block compiles as always. Call it after
  jax.distributed.initialize: it asks for the devices.

  Args:
    workdir: a run's; on gs:// and the like the cache lies beside it, for all
      hosts, unless they compute on CPUs.
  """
  global _depth
  with _lock:
    before = _enter(workdir) if _depth == 0 else None
    _depth += 1
  try:
    yield
  finally:
    with _lock:
      _depth -= 1
      if before is not None:
        _set(before)


def _enter(workdir: str) -> dict[str, object] | None:
  """Turns the cache on; returns the settings before, None if it stays off."""
  if _disabled or jax.config.jax_compilation_cache_dir:
    return None
  path = folder(workdir)
  if path is None or not _prepare(path):
    return None
  names = ("jax_compilation_cache_dir", *_SETTINGS)
  before = {name: getattr(jax.config, name) for name in names}
  _set({"jax_compilation_cache_dir": path, **_SETTINGS})
  return before


def _set(settings: dict[str, object]) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # it would keep the folder that it had


def folder(workdir: str = "") -> str | None:
  """Returns the folder of this machine's cache, None where it is turned off.

  Other versions of JAX and other processors have other folders.
  """
  given = os.environ.get(VARIABLE, "").strip()
  if given.lower() in _OFF:
    return None
  try:
    if given:
      base = files.expand(given)
    elif files.is_remote(workdir) and jax.default_backend() != "cpu":
      base = f"{workdir.rstrip('/').rpartition('/')[0]}/jax_cache"
    else:
      home = os.environ.get("XDG_CACHE_HOME") or files.expand("~/.cache")
      base = f"{home}/imagen_jax/compiled"
  except ValueError:  # there is no home folder
    return None
  return f"{base}/jax{jax.__version__}-{jaxlib.__version__}-{_machine()}"


def _machine() -> str:
  """Returns a checksum of the processor's model and its instructions."""
  found = [platform.system(), platform.machine(), platform.processor()]
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    keys = ("vendor_id", "model name", "flags", "Features", "CPU part")
    found += [x for x in lines.split("\n") if x.split("\t")[0].strip() in keys]
  return hashlib.sha256("\n".join(found).encode()).hexdigest()[:12]


def _prepare(path: str) -> bool:
  """Makes a folder; returns whether entries there may be read."""
  if files.is_remote(path):
    return True
  try:
    os.makedirs(path, mode=0o700, exist_ok=True)
    if not _is_mine(path) or not _is_mine(os.path.dirname(path)):
      logging.warning(
        "compile cache %s can be written by others, expected a folder of your"
        " own with mode 700: it is not used", path,
      )  # fmt: skip
      return False
    if jax.default_backend() == "cpu" and not _is_probed(path):
      return False
    _tidy(pathlib.Path(path))
  except OSError:  # a disk that is full, or only read
    return False
  return True


def _is_mine(path: str) -> bool:
  """Returns whether nobody else can write to a folder."""
  found = os.lstat(path)
  mine = hasattr(os, "getuid") and found.st_uid == os.getuid()
  return mine and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022


def _tidy(path: pathlib.Path) -> None:
  """Removes entries that a killed process left, and the oldest of too many.

  JAX does not write entries whole or not at all, and keeps one that it cannot
  read. Only entries since the last call are looked at.
  """
  checked = path / "checked"
  since = checked.stat().st_mtime if checked.exists() else 0.0
  checked.touch()
  for entry in path.glob("*-cache"):
    if entry.stat().st_mtime >= since and not _is_whole(entry.read_bytes()):
      entry.unlink(missing_ok=True)
  found = [(entry.stat(), entry) for entry in path.glob("*-cache")]
  total = sum(entry.st_size for entry, _ in found)
  for entry, name in sorted(found, key=lambda pair: pair[0].st_mtime):
    if total <= MOST_BYTES:
      break
    name.unlink(missing_ok=True)
    total -= entry.st_size


def _is_whole(entry: bytes) -> bool:
  """Returns False for an entry that is cut; zstd's are taken as whole."""
  if entry.startswith(b"\x28\xb5\x2f\xfd"):
    return True
  try:
    zlib.decompress(entry)
  except zlib.error:
    return False
  return True


def _is_probed(path: str) -> bool:
  """Returns whether a CPU's entries can be read; begins to find out.

  On some CPUs with AVX-512 JAX refuses its own entries, or ends the process
  (jax issue 38445). So a process of its own writes an entry first, and another
  reads it. The first run, whose folder is empty, writes without waiting.
  """
  if path in _made or os.path.exists(f"{path}/sound"):
    return True
  begun = f"{path}/probing"
  try:
    if time.time() - os.stat(begun).st_mtime < _PROBED:
      return False
    os.utime(begun)
  except FileNotFoundError:
    os.close(os.open(begun, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    _made.add(path)
  home = str(pathlib.Path(__file__).parents[2])
  inherited = os.environ.get("PYTHONPATH")
  _probes.append(
    subprocess.Popen(
      [sys.executable, "-m", _MODULE, "write", path],
      env=os.environ
      | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, (home, inherited))),
      },
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
  )
  return path in _made


def probe(act: str, path: str) -> bool:
  """Writes an entry of a probe, or reads it, in a process of its own.

  Args:
    act: "write", which also has another process read it and leaves the file
      `sound` in the folder if that could; or "read".
    path: the cache's folder.

  Returns:
    True if it could.
  """
  hits = []
  jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event.endswith("/cache_hits"))
  )
  _set({"jax_compilation_cache_dir": f"{path}/probe", **_SETTINGS})
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  x = jax.numpy.linspace(-1, 1, 2 * 16 * 16 * 8).reshape(2, 16, 16, 8)
  kernel = jax.numpy.ones((3, 3, 8, 8)) / 72
  hits.clear()
  found = float(jax.jit(_some_work)(x, kernel))
  result = pathlib.Path(path, "probe", "result")
  if act == "read":
    return any(hits) and found == float(result.read_text())
  files.write(result, repr(found))
  done = subprocess.run([sys.executable, "-m", _MODULE, "read", path])
  if done.returncode == 0:
    files.write(f"{path}/sound", "")
  return done.returncode == 0


def _some_work(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Computes as nets do: a convolution, products, gathers and exponentials."""
  h = jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  h = jax.nn.softmax(jax.numpy.einsum("bhwc,bHWc->bhwHW", h, x), axis=-1)
  order = jax.numpy.argsort(h.reshape(-1))
  return jax.numpy.sum(h.reshape(-1)[order][::7] * jax.numpy.exp(-h.max()))


if __name__ == "__main__":
  if hasattr(os, "nice"):
    os.nice(10)
  sys.exit(not probe(*sys.argv[1:]))
