"""How a program ends by what its main raises."""

import os
import socket
import subprocess
import sys

import jax
import pytest
from gcsfs.retry import validate_response

from imagen_jax.cli import program

GLOO = "UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error: reset by peer"
JaxError = jax.errors.JaxRuntimeError


@pytest.mark.parametrize(
  "many,error,code",
  [
    (True, JaxError("INTERNAL: Gloo all-reduce failed"), program.LOST),
    (True, ValueError(GLOO), program.LOST),  # of reading what JAX computed
    (True, ValueError("--seed is -1, expected at least 0"), 1),
    (True, ValueError("UNet: 3 rows, expected 4"), 1),
    (False, ValueError(GLOO), 1),
  ],
)
def test_who_lost_another_is_told_apart(monkeypatch, capsys, many, error, code):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: many)
  with pytest.raises(SystemExit) as end, program.as_exit_codes():
    raise error
  assert end.value.code == code
  said = capsys.readouterr().err
  assert said.startswith("error: ")
  assert ("perhaps because another process ended" in said) == (
    code == program.LOST
  )


@pytest.mark.parametrize("many", [True, False])
@pytest.mark.parametrize(
  ("code", "said"),
  [
    ("RESOURCE_EXHAUSTED", "error: out of device memory: "),
    ("INVALID_ARGUMENT", "error: JAX cannot compile or run this: INVALID_"),
    ("UNIMPLEMENTED", "error: JAX cannot compile or run this: UNIMPLEMENTED"),
  ],
)
@pytest.mark.parametrize("kind", [JaxError, ValueError])
def test_what_fails_again_is_not_started_again(
  monkeypatch, capsys, many, code, said, kind
):
  """A launcher would restart LOST, ten times over."""
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: many)
  with pytest.raises(SystemExit) as end, program.as_exit_codes():
    raise kind(f"{code}: XLA cannot\nat 0x1")
  assert end.value.code == 1
  found = capsys.readouterr().err
  assert found.startswith(said) and "XLA cannot" in found


@pytest.mark.parametrize(
  ("status", "said"),
  [
    (403, "OSError: Forbidden: not yours"),
    (404, "FileNotFoundError: b/o"),
    (400, "HttpError: not yours, 400"),
  ],
)
def test_what_gs_answers_is_one_sentence(capsys, status, said):
  answer = b'{"error": {"message": "not yours"}}'
  with pytest.raises(SystemExit) as end, program.as_exit_codes():
    validate_response(status, answer, "b/o")
  assert end.value.code == 1
  assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("error", [OSError("no file named"), KeyError("x")])
def test_what_is_our_own_mistake_is_a_traceback(error):
  with pytest.raises(type(error)), program.as_exit_codes():
    raise error


def test_output_that_nobody_reads_ends_no_program(monkeypatch):
  there, here = os.pipe()
  out = os.fdopen(here, "w", encoding="ascii")
  monkeypatch.setattr(sys, "stdout", out)
  with program.lasting_output():
    print("star-\u2605", flush=True)
    assert os.read(there, 99) == b"star-\\u2605\n"
    os.close(there)
    print("lost")
  out.close()  # as Python does at its end
  monkeypatch.setattr(sys, "stderr", None)
  with pytest.raises(SystemExit) as end:
    program.fail("lost", 1)
  assert end.value.code == 1


def test_a_package_that_an_extra_brings_is_named(capsys):
  with pytest.raises(SystemExit) as end, program.as_exit_codes():
    raise ModuleNotFoundError("No module named 'grain'", name="grain")
  assert end.value.code == 1
  assert capsys.readouterr().err == (
    "error: the package grain is not installed, expected the extra train: "
    "pip install 'imagen_jax[train]'\n"
  )
  with pytest.raises(ImportError), program.as_exit_codes():
    raise ImportError("cannot import name 'x' from 'imagen_jax.y'", name="y")


def test_verbs_that_train_import_no_extra():
  """So that a missing one is their sentence, not a traceback."""
  code = (
    "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); "
    "import imagen_jax.train, imagen_jax.evaluate"
  )
  command = [sys.executable, "-c", code, *program.EXTRAS]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  ("path", "said"),
  [
    ("new/folder/a.bin", ""),
    ("a.bin", ""),
    ("e.pt", "has the wrong ending, expected .bin"),
    (".", "is a folder, expected a file such as {path}/output.bin"),
    ("folder.bin", "is a folder, expected a file such as {path}/output.bin"),
    ("new/", "is a folder, expected a file such as {folder}/new/output.bin"),
    ("file/a.bin", "cannot be written: Not a directory"),
    ("file/b/a.bin", "cannot be written: Not a directory"),
    ("package://weights/a.bin", "can only be read, expected a path of a disk"),
    ("hf://a/b/c.bin", "can only be read, expected a path of a disk or gs://"),
  ],
)
def test_outputs_are_checked_and_not_made(tmp_path, path, said):
  (tmp_path / "folder.bin").mkdir()
  (tmp_path / "file").touch()
  before = sorted(tmp_path.rglob("*"))
  given = path if "://" in path else f"{tmp_path}/{path}"
  if said:
    with pytest.raises(ValueError, match="^output ") as caught:
      program.check_output("output", given, ".bin")
    assert said.format(path=given, folder=tmp_path) in str(caught.value)
  else:
    program.check_output("output", given, ".bin")
    program.check_output("output", given)
  assert sorted(tmp_path.rglob("*")) == before


def test_an_output_in_this_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  program.check_output("output", "a.bin", ".bin")
  with pytest.raises(ValueError, match="output a.bin/b is a file, expected a"):
    (tmp_path / "a.bin").mkdir()
    (tmp_path / "a.bin" / "b").touch()
    program.check_folder("output", "a.bin/b")


def test_a_profiler_needs_a_free_port():
  with socket.socket(socket.AF_INET6) as other:
    other.bind(("::", 0))
    taken = other.getsockname()[1]
    for port in (taken, -1, 2**16):
      match = f"^--profiler_port {port} cannot be used, expected a free port: "
      with (
        pytest.raises(ValueError, match=match),
        program.profiler_server(port),
      ):
        pass
  reach = lambda: socket.create_connection(("localhost", taken), timeout=60)
  with program.profiler_server(taken), reach():
    pass
  with program.profiler_server(None):
    pass
