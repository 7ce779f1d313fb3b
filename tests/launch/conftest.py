"""A copy of launch/ where every program of a platform is a pretended one."""

import contextlib
import importlib
import io
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
import unittest.mock

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = (
  "gcloud",
  "xpk",
  "kubectl",
  "docker",
  "sbatch",
  "srun",
  "scancel",
  "scontrol",
  "sudo",
)
# A python of .venv that makes an empty wheel and records nothing.
PACKING = """#!/bin/sh
while [ $# -gt 1 ]; do
  case $1 in --wheel-dir) touch "$2/imagen_jax-1-py3-none-any.whl" ;; esac
  shift
done
"""
# Records its name and arguments, and fails if a file asks for it.
PRETENDED = """#!/bin/sh
{{ printf '%s\\0' "${{0##*/}}" "$@"; printf '\\n\\0'; }} >> {calls}
[ ! -e {fails} ]
"""
VARIABLES = (
  "ACCELERATOR_TYPE",
  "CLUSTER",
  "IMAGE",
  "JAX_COORDINATOR_BIND_ADDRESS",
  "JAX_NUM_CPU_DEVICES",
  "LIBTPU_INIT_ARGS",
  "PROJECT_ID",
  "RUNTIME_VERSION",
  "TPU_NAME",
  "XLA_FLAGS",
  "XLA_PYTHON_CLIENT_MEM_FRACTION",
  "ZONE",
)


def heed_interruptions() -> None:
  """As a terminal's programs do; tests in the background begin without."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores


class Platform:
  """The scripts below a path with spaces, and who they would talk to."""

  def __init__(self, tmp_path: pathlib.Path, launchers):
    self.launchers = launchers
    self.root = tmp_path / "a project"
    self.bin = tmp_path / "bin"
    self.calls_path = tmp_path / "calls"
    self.fails = tmp_path / "fails"
    self.bin.mkdir()
    shutil.copytree(ROOT / "launch", self.root / "launch")
    for name in ("setup.py", "requirements-lock.txt"):
      shutil.copy(ROOT / name, self.root)
    for name in PROGRAMS:
      self.pretend(name, PRETENDED)
    # Itself and not what finds it, as pyenv's shims, which take their time.
    (self.bin / "python3").symlink_to(os.path.realpath(sys.executable))
    self.env = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    self.env["PATH"] = f"{self.bin}:{os.environ['PATH']}"

  def pretend(self, name: str, text: str):
    """Makes a program; {calls} and {fails} in its text become paths."""
    path = self.bin / name
    path.write_text(
      text.format(
        calls=shlex.quote(str(self.calls_path)),
        fails=shlex.quote(str(self.fails)),
      )
    )
    path.chmod(0o755)

  def make_packable(self):
    """Gives the project what a wheel is built of, and pretends to build it."""
    (self.root / "imagen_jax").mkdir()
    (self.root / "imagen_jax" / "__init__.py").touch()
    python = self.root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PACKING)
    python.chmod(0o755)

  def start(self, script: str, *args: str, **env: str) -> subprocess.Popen:
    """Starts a script of launch/ from another folder."""
    return subprocess.Popen(
      [self.root / "launch" / script, *args],
      cwd=self.bin,
      env=self.env | env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
      preexec_fn=heed_interruptions,
    )

  def run(
    self, script: str, *args: str, **env: str
  ) -> subprocess.CompletedProcess:
    """Runs a script of launch/ to its end."""
    process = self.start(script, *args, **env)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(args, process.returncode, out, err)

  @staticmethod
  def until(found, limit: float = 300) -> None:
    """Waits until found(); the limit is for what never comes to pass."""
    end = time.monotonic() + limit
    while not found():
      assert time.monotonic() < end, "what is waited for does not come to pass"
      time.sleep(0.05)

  def dry(self, script: str, *args: str, **env: str) -> list[list[str]]:
    """The commands that a dry run prints, having run none."""
    at = args.index("--") if "--" in args else len(args)
    run = self.run(script, *args[:at], "--dry_run", *args[at:], **env)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    assert self.calls() == []
    return [shlex.split(line) for line in run.stdout.splitlines()]

  def calls(self) -> list[list[str]]:
    """What the pretended programs were called with since the last time."""
    path = self.calls_path
    text = path.read_text() if path.exists() else ""
    path.unlink(missing_ok=True)
    return [call.split("\0")[:-1] for call in text.split("\n\0")[:-1]]

  def says(self, script: str, *args: str) -> str:
    """The one sentence with which a script refuses, having run nothing."""
    module = getattr(self.launchers, script.removesuffix(".sh"), None)
    run = self.call(module, args) if module else self.run(script, *args)
    assert run.returncode == 2, run
    assert run.stdout == ""
    assert run.stderr.startswith(f"launch/{script}: ")
    assert run.stderr.count("\n") == 1, run.stderr
    assert self.calls() == []
    return run.stderr

  def call(self, module, args) -> subprocess.CompletedProcess:
    """Runs a launcher within this process, which is quicker."""
    out, err = io.StringIO(), io.StringIO()
    out.reconfigure = lambda **kwargs: None
    words = [f"{module.__name__}.py", *args]
    with (
      unittest.mock.patch.dict(os.environ, self.env, clear=True),
      unittest.mock.patch.object(sys, "argv", words),
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
      pytest.raises(SystemExit) as ended,
    ):
      self.launchers.launcher.main(module.make_parser(), module.body)
    code = ended.value.code
    return subprocess.CompletedProcess(
      args, code, out.getvalue(), err.getvalue()
    )


@pytest.fixture(scope="session")
def launchers():
  """The modules of launch/, which import each other by their names."""
  before = [*sys.path]
  sys.path.insert(0, str(ROOT / "launch"))
  names = ("launcher", "local", "pack", "slurm", "tpu_vm", "watch", "xpk")
  found = {name: importlib.import_module(name) for name in names}
  sys.path[:] = before
  yield types.SimpleNamespace(**found)
  for name in names:
    del sys.modules[name]


@pytest.fixture
def platform(tmp_path, launchers):
  return Platform(tmp_path, launchers)
