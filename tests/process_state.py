"""What a process holds that a library must leave alone, and a program.

As a program it imports every module of the package and makes typical calls of
them, and prints what either changed, as JSON.
"""

import ast
import asyncio
import contextlib
import faulthandler
import importlib
import io
import json
import logging
import os
import pathlib
import pkgutil
import runpy
import signal
import sys
import tempfile
import threading
import warnings
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint._src import asyncio_utils
from PIL import Image

HERE = pathlib.Path(__file__).parent
PACKAGE = HERE.parent / "imagen_jax"


def snapshot() -> dict[str, Any]:
  """Returns everything that is compared, by name."""
  loop = asyncio.new_event_loop()
  loop.close()
  listeners = jax._src.monitoring
  state = {
    "event loops": type(loop),
    "asyncio": [asyncio.run, asyncio.Task, asyncio.Future],
    "Orbax's runner": asyncio_utils.run_sync,
    "warning filters": list(warnings.filters),
    "showwarning": warnings.showwarning,
    "JAX's listeners": [
      listeners.get_event_duration_listeners(),
      listeners.get_event_listeners(),
      listeners.get_event_time_span_listeners(),
      listeners.get_scalar_listeners(),
    ],
    "JAX's config": dict(jax.config.values),
    "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
    "environment": dict(os.environ),
    "sys.path": list(sys.path),
    "folder": os.getcwd(),
    "hooks": [sys.excepthook, sys.unraisablehook, threading.excepthook],
    "faulthandler": faulthandler.is_enabled(),
    "threads": sorted(
      thread.name
      for thread in threading.enumerate()
      if "process_request_thread" not in thread.name  # of the stand-in hub
    ),
    "numpy's errors": np.geterr(),
    "numpy's random state": np.random.get_state()[1].tolist(),
    "PIL's limit": Image.MAX_IMAGE_PIXELS,
  }
  loggers = {"root": logging.root, **logging.root.manager.loggerDict}
  for name, logger in loggers.items():
    if isinstance(logger, logging.Logger):
      state[f"logger {name}"] = [
        logger.level, logger.handlers[:], logger.filters[:],
        logger.propagate, logger.disabled,
      ]  # fmt: skip
  return state


def changed(before: dict[str, Any]) -> list[str]:
  """Returns what differs from then; new loggers are no change."""
  now = snapshot()
  return [name for name in before if before[name] != now[name]]


def import_what_it_imports() -> None:
  """Imports the modules of others: what they change is not our concern."""
  for path in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom) and not node.level:
        # What is imported from a package may be a module, or not.
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        names.append(node.module)
      for name in names:
        if name.split(".")[0] != PACKAGE.name:
          with contextlib.suppress(ImportError):
            importlib.import_module(name)
  huggingface_hub.logging.get_verbosity()  # its logger is made when asked for


def import_all() -> None:
  """Imports every module."""
  for module in pkgutil.walk_packages([str(PACKAGE)], "imagen_jax."):
    importlib.import_module(module.name)


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


def call(folder: pathlib.Path) -> None:
  """Does with the package what a notebook or a server may do."""
  from imagen_jax import files, progress
  from imagen_jax.checkpoints.manager import Checkpoints, restore_ema
  from imagen_jax.data import images
  from imagen_jax.parallel.processes import Failed

  data = io.BytesIO()
  Image.new("RGB", (20, 10)).save(data, "png")
  for each in (data.getvalue(), data.getvalue()[:-20]):
    with contextlib.suppress(ValueError):
      images.decode(each)
  files.write(folder / "new" / "a", "text", parents=True)
  with contextlib.suppress(ValueError):
    files.write(folder / "new", "text")

  state = {"ema": {f"x{i}": jnp.arange(9.0) + i for i in range(5)}}
  with contextlib.suppress(ValueError):
    restore_ema(str(folder), state["ema"])
  with Checkpoints(str(folder), keep=1, log=lambda line: None) as run:
    for step in (1, 2):
      run.save(step, state, {})
      run.wait()
    run.restore(state, {})
    # Of blocks that overlap, the first to begin is the first to end.
    other = Checkpoints(str(folder / "other"), keep=1)
  other.close()
  restore_ema(str(folder), state["ema"])
  asyncio.run(in_a_loop(folder))
  for path in (folder / "checkpoints/2/state").rglob("*"):
    if path.is_file():
      os.truncate(path, path.stat().st_size // 2)
  with contextlib.suppress(ValueError, Failed):
    restore_ema(str(folder), state["ema"])

  with progress.Stopwatch() as watch, progress.compilations():
    jax.jit(lambda x: x + 1)(1.0)
    watch.lap()
  for out in (io.StringIO(), Terminal()):
    with progress.Progress("work", 3, out=out) as work:
      for step in (1, 2):
        work.show(step)
        work.log("a line")


def download() -> None:
  """Fetches one file that is on the hub, and one that is not."""
  from imagen_jax.interop import download

  for path in ("a/net.safetensors", "b/not there"):
    with contextlib.suppress(ValueError):
      download.fetch(f"hf://someone/{path}")


async def in_a_loop(folder: pathlib.Path) -> None:
  """Saves and restores where an event loop runs, as in a notebook."""
  from imagen_jax.checkpoints.manager import Checkpoints

  state = {"ema": jnp.arange(9.0)}
  with Checkpoints(str(folder / "loop"), keep=1) as run:
    run.save(1, state, {})
    run.wait()
    run.restore(state, {})


def main() -> None:
  hub_server = runpy.run_path(str(HERE / "interop" / "hub_server.py"))
  folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
  (folder / "repos/someone/a").mkdir(parents=True)
  (folder / "repos/someone/a/net.safetensors").write_text("weights")
  hub = hub_server["Server"](folder / "repos")
  os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "cache")}
  import_what_it_imports()
  found = {}
  before = snapshot()
  import_all()
  found["imports"] = changed(before)
  before = snapshot()
  call(folder)
  found["calls"] = changed(before)
  before = snapshot()
  download()
  found["downloads"] = changed(before)
  found["requests"] = hub.requests
  print(json.dumps(found))


if __name__ == "__main__":
  main()
