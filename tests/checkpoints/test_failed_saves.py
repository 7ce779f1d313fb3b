"""Saves that fail: no space, a read-only folder, a process that is killed."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax.numpy as jnp
import pytest

from imagen_jax.checkpoints.manager import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]
ENV = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}

PREAMBLE = """
import os, resource, signal, subprocess, sys
from absl import logging
import jax, numpy as np
from imagen_jax.parallel import distributed, processes
from imagen_jax.checkpoints import verify
from imagen_jax.checkpoints.manager import Checkpoints

logging.set_verbosity(logging.WARNING)  # as program.run does
distributed.start()
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("a",))
spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
workdir, (small, large) = sys.argv[1], (10_000, 2_000_000)

def say(sentence):
  print(sentence.replace(workdir, "RUN"), flush=True)

def state(seed, size=small):
  values = np.random.default_rng(seed).normal(size=size).astype(np.float32)
  part = lambda index: values[index]
  return {"x": jax.make_array_from_callback(values.shape, spread, part)}

def same(a, b):
  return all(
    np.array_equal(x.data, y.data) for x, y in
    zip(a["x"].addressable_shards, b["x"].addressable_shards))

def names():
  return " ".join(sorted(os.listdir(workdir + "/checkpoints")))

def wait():
  try:
    run.wait()
  except ValueError as error:
    say(f"not safe: {error}")

def limit(size):
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))

run = Checkpoints(workdir, keep=1, log=say)
"""


def start(script: str, *args, **env: str) -> subprocess.Popen:
  return subprocess.Popen(
    [*args[1:], sys.executable, "-c", PREAMBLE + script, str(args[0])],
    cwd=ROOT,
    env=ENV | env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    encoding="utf-8",
  )


NO_SPACE = """
run.save(1, state(1), {})
run.wait()
make_full()
run.save(2, state(2, large), {})
many = {f"x{i}": state(i, 10 * small)["x"] for i in range(40)}
run.save(3, many, {})  # when one fails, others are under way
say("kept" if "1" in names().split() else "lost")
wait()
say(names())
make_room()
run.save(4, state(4), {})
wait()
say(names())
say(same(run.restore(state(0), {}), state(4)) and "restored")
run.close()
"""
TOLD = """\
checkpoint RUN/checkpoints/2 could not be saved: {why}
kept
checkpoint RUN/checkpoints/3 could not be saved: {why}
not safe: checkpoint RUN/checkpoints/3 could not be saved: {why}
1
4
restored
"""


def check_told(process: subprocess.Popen, why: str) -> None:
  out, err = process.communicate(timeout=120)
  assert err == ""
  # A folder that takes nothing is logged at once, space when it ran out.
  lines, wanted = out.splitlines(), TOLD.format(why=why).splitlines()
  assert sorted(lines) == sorted(wanted)
  assert lines[-4:] == wanted[-4:]
  assert process.returncode == 0


def in_tmpfs(workdir) -> list[str]:
  """What runs a command with 4 MB of space at workdir, as a root of its own."""
  mount = f"mount -t tmpfs -o size=4m tmpfs {workdir} && exec "
  return ["unshare", "-rm", "sh", "-c", mount + '"$0" "$@"']


def test_files_that_cannot_grow(tmp_path):
  script = "make_full = lambda: limit(2**20)\nmake_room = lambda: limit(-1)\n"
  process = start(script + NO_SPACE, tmp_path)
  check_told(process, "File too large")


FULL = "make_full = make_room = lambda: None\n"
READ_ONLY = """
def remount(how):
  subprocess.run(["mount", "-o", "remount," + how, workdir], check=True)
make_full, make_room = (lambda: remount("ro")), (lambda: remount("rw"))
"""


@pytest.mark.parametrize(
  ("script", "why"),
  [
    (FULL, "No space left on device"),
    (READ_ONLY, "Read-only file system"),
  ],
  ids=["full", "read-only"],
)
def test_a_disk_that_takes_no_more(tmp_path, script, why):
  if subprocess.run([*in_tmpfs(tmp_path), "true"], check=False).returncode:
    pytest.skip("this machine lets nobody mount a file system")
  process = start(script + NO_SPACE, tmp_path, *in_tmpfs(tmp_path))
  check_told(process, why)


KILLED = """
run.save(1, state(1), {})
run.wait()
path = workdir + "/checkpoints/2.orbax-checkpoint-tmp"

def kill(event, args):
  if event == "os.rename" and os.fspath(args[0]) == path:
    os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
run.save(2, state(2, 10 * large), {})
run.wait()
"""


def test_killed_while_it_saves(tmp_path):
  process = start(KILLED, tmp_path)
  process.communicate(timeout=120)
  assert process.returncode == -signal.SIGKILL
  folder = tmp_path / "checkpoints"
  names = sorted(path.name for path in folder.iterdir())
  assert names == ["1", "2.orbax-checkpoint-tmp"]
  with Checkpoints(str(tmp_path), keep=1) as run:
    state = run.restore({"x": jnp.zeros(10_000)}, {})
  assert state["x"].shape == (10_000,)
  assert [path.name for path in folder.iterdir()] == ["1"]


# The second of two processes cannot read what the first can, and then cannot
# write; what is truncated neither can read.
TWO = """
me = jax.process_index()
read_tree = verify._read_tree

def fail(path, like):
  if me == 1:
    raise OSError(5, "Input/output error")
  return read_tree(path, like)

run.close()
run = Checkpoints(workdir, keep=9, log=say)
for step in (1, 2, 3):
  run.save(step, state(step), {})
  run.wait()
data = workdir + "/checkpoints/3/state/d/"
if me == 0:
  for name in os.listdir(data):
    os.truncate(data + name, 20)
say(same(run.restore(state(0), {}), state(2)) and "restored 2")
verify._read_tree = lambda path, like: (
  fail if path.name == "2" else read_tree)(path, like)
say(same(run.restore(state(0), {}), state(1)) and "restored 1")
if me == 1:
  limit(2**20)
run.save(4, state(4, large), {})
wait()
limit(-1)
run.save(5, state(5), {})
wait()
say(same(run.restore(state(0), {}), state(5)) and "restored 5")
run.close()
say(names())
counts, words = processes.gather_host_stats((me, 2**40 + me), "é" * (me + 1))
say(f"{counts.tolist()} {words}")
_, (_, long) = processes.gather_host_stats((), 300 * "é" * me)
say(f"cut to {len(long.encode())} bytes")
"""


def test_two_processes_decide_alike(tmp_path):
  with contextlib.closing(socket.socket()) as s:
    s.bind(("localhost", 0))
    address = f"localhost:{s.getsockname()[1]}"
  env = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
  processes = [
    start(TWO, tmp_path, **env, JAX_PROCESS_ID=str(i)) for i in range(2)
  ]
  ends = [process.communicate(timeout=120) for process in processes]
  said = [
    [line for line in out.splitlines() if not line.startswith("[Gloo]")]
    for out, _ in ends
  ]
  print(ends)
  assert [process.returncode for process in processes] == [0, 0]
  other = "another process failed"
  for lines, unread, unwritten in zip(
    said, (other, "Input/output error"), (other, "File too large"), strict=True
  ):
    lost = f"checkpoint RUN/checkpoints/4 could not be saved: {unwritten}"
    assert "is renamed 3.damaged, and step 2 taken" in lines[0]
    assert lines[1:] == [
      "restored 2",
      f"checkpoint RUN/checkpoints/2 is damaged ({unread}); it is renamed "
      "2.damaged, and step 1 taken",
      "restored 1",
      lost,
      f"not safe: {lost}",
      "restored 5",
      "1 2.damaged 3.damaged 5",
      f"{[[0, 2**40], [1, 2**40 + 1]]} ['é', 'éé']",
      "cut to 500 bytes",
    ]
