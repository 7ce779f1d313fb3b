"""examples/prepare_on_ray.py: the bytes of one process, a worker killed."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from imagen_jax import prepare

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "prepare_on_ray.py"
pytestmark = pytest.mark.slow


def write_folder(folder, count=60, side=300):
  """Images that take a second per shard."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(count):
    image = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
    image.save(folder / f"{i:03}.png")
    (folder / f"{i:03}.txt").write_text(f"number {i % 50}")
  (folder / "cut.png").write_bytes(b"\x89PNG")
  (folder / "cut.txt").write_text("cut")


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


def start(*flags):
  return subprocess.Popen(
    [sys.executable, SCRIPT, *map(str, flags)],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def parents():
  """Returns the parent of each process, by its number."""
  found = {}
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):
      found[int(path.parent.name)] = int(
        path.read_text().rpartition(")")[2].split()[1]
      )
  return found


def workers(of):
  """Returns the processes below `of` that write a shard for Ray."""
  above, found = parents(), []
  for process in above:
    up = process
    while up in above and up != of:
      up = above[up]
    with contextlib.suppress(OSError):
      name = pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
      if up == of and name.startswith(b"ray::write_shard"):
        found.append(process)
  return found


def test_a_killed_worker_changes_no_byte(tmp_path):
  pytest.importorskip("ray", reason="ray is not installed")
  write_folder(tmp_path / "in")
  flags = [f"--source={tmp_path}/in", "--per_shard=12", "--validation=0.1"]
  prepare.main([*flags, f"--output={tmp_path}/one"])
  running = start(*flags, f"--output={tmp_path}/ray")
  killed = set()
  end = time.monotonic() + 300
  while running.poll() is None and time.monotonic() < end:
    if len(killed) < 2:
      for process in workers(running.pid)[:1]:
        with contextlib.suppress(ProcessLookupError):
          os.kill(process, signal.SIGKILL)
          killed.add(process)
    time.sleep(0.05)
  out, _ = running.communicate(timeout=60)
  assert running.returncode == 0, out
  assert killed
  assert contents(tmp_path / "one") == contents(tmp_path / "ray")


def test_an_error_of_a_task_is_one_sentence(tmp_path):
  pytest.importorskip("ray", reason="ray is not installed")
  write_folder(tmp_path / "in", count=2, side=8)
  output = tmp_path / "out"
  output.mkdir()
  (output / "shards").write_text("a file where a folder is needed")
  running = start(f"--source={tmp_path}/in", f"--output={output}")
  out, _ = running.communicate(timeout=300)
  assert running.returncode == 1, out
  lines = [line for line in out.splitlines() if "shards" in line]
  assert lines and "Traceback" not in out
