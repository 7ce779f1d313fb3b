"""The cache of compiled programs: where it lies, who may use it, and when."""

import os
import pathlib
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import pytest

from imagen_jax import sample
from imagen_jax.cli import command_line, program
from imagen_jax.parallel import compile_cache


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A cache folder of this test's, known to work; JAX's own is off."""
  monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "cache"))
  kept = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  path = pathlib.Path(compile_cache.folder())
  path.mkdir(parents=True, mode=0o700)
  path.parent.chmod(0o700)
  (path / "sound").touch()
  yield path
  compile_cache._set({"jax_compilation_cache_dir": kept})


def settings():
  names = ("jax_compilation_cache_dir", *compile_cache._SETTINGS)
  return {name: getattr(jax.config, name) for name in names}


def compiled(number: int) -> None:
  """Compiles a program that no other number has."""
  jax.jit(lambda x: jnp.sin(x) * number).lower(jnp.ones(number)).compile()


def entries(path):
  return sorted(entry.name for entry in path.glob("*-cache"))


def test_what_a_block_compiles_is_kept(folder, monkeypatch):
  quick = {"jax_persistent_cache_min_compile_time_secs": 0.0}
  monkeypatch.setattr(compile_cache, "_SETTINGS", quick)
  before = settings()
  compiled(11)
  with compile_cache.enabled():
    assert jax.config.jax_compilation_cache_dir == str(folder)
    compiled(12)
    made = entries(folder)
    with compile_cache.enabled():  # within it nothing changes
      compiled(13)
    compiled(14)
  assert settings() == before
  assert made and len(entries(folder)) > len(made)
  held = entries(folder)
  compiled(15)
  assert entries(folder) == held  # nobody else's programs


def test_it_can_be_turned_off(folder, monkeypatch):
  before = settings()
  with compile_cache.disabled(), compile_cache.enabled():
    assert settings() == before
  for value in ("off", "OFF", "0", "no"):
    monkeypatch.setenv(compile_cache.VARIABLE, value)
    assert compile_cache.folder() is None
    with compile_cache.enabled():
      assert settings() == before


def test_a_users_own_cache_stays(folder, tmp_path):
  own = str(tmp_path / "own")
  jax.config.update("jax_compilation_cache_dir", own)
  with compile_cache.enabled():
    assert jax.config.jax_compilation_cache_dir == own
  assert jax.config.jax_compilation_cache_dir == own


def test_an_error_in_the_block_ends_it_too(folder):
  before = settings()
  with pytest.raises(KeyError), compile_cache.enabled():
    raise KeyError
  assert settings() == before


@pytest.mark.parametrize("which", ["leaf", "above", "link"])
def test_a_folder_that_others_can_write_is_not_used(
  folder, tmp_path, caplog, which
):
  before = settings()
  if which == "link":
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
  else:
    (folder if which == "leaf" else folder.parent).chmod(0o777)
  with compile_cache.enabled():
    assert settings() == before
  assert "can be written by others" in caplog.text


def test_a_folder_that_cannot_be_made_is_no_fault(folder, monkeypatch):
  monkeypatch.setenv(compile_cache.VARIABLE, "/dev/null/x")
  before = settings()
  with compile_cache.enabled():
    assert settings() == before
    compiled(16)


def test_where_it_lies(monkeypatch, tmp_path):
  monkeypatch.delenv(compile_cache.VARIABLE)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  path = compile_cache.folder("gs://bucket/runs/one")  # this is a CPU
  start = f"{tmp_path}/imagen_jax/compiled/jax{jax.__version__}-"
  assert path.startswith(start)
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  path = compile_cache.folder("gs://bucket/runs/one/")
  assert path.startswith(f"gs://bucket/runs/jax_cache/jax{jax.__version__}-")
  assert compile_cache.folder("/runs/one").startswith(start)
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.delenv("HOME")
  monkeypatch.setattr(os.path, "expanduser", lambda path: path)
  assert compile_cache.folder() is None


def test_another_machine_has_another_folder(monkeypatch, folder):
  monkeypatch.setattr(compile_cache.platform, "machine", lambda: "other")
  assert compile_cache.folder() != str(folder)


def test_the_oldest_entries_give_way(folder, monkeypatch):
  entry = zlib.compress(b"machine code")
  for i in range(4):
    (folder / f"{i}-cache").write_bytes(entry)
    os.utime(folder / f"{i}-cache", (i, i))
  monkeypatch.setattr(compile_cache, "MOST_BYTES", int(2.5 * len(entry)))
  with compile_cache.enabled():
    assert entries(folder) == ["2-cache", "3-cache"]


def test_an_entry_that_a_killed_process_left_is_removed(folder):
  """Else JAX would fail to read it each time, and never replace it."""
  entry = zlib.compress(b"machine code" * 99)
  (folder / "whole-cache").write_bytes(entry)
  (folder / "cut-cache").write_bytes(entry[:-9])
  (folder / "empty-cache").touch()
  with compile_cache.enabled():
    assert entries(folder) == ["whole-cache"]


def test_a_cpu_is_probed_before_entries_are_read(folder, monkeypatch):
  """By a process that writes an entry, and one that reads it."""
  (folder / "sound").unlink()
  started = []
  monkeypatch.setattr(
    compile_cache.subprocess, "Popen", lambda *a, **k: started.append(a[0])
  )
  monkeypatch.setattr(compile_cache, "_made", set())
  for _ in range(2):  # the first run writes into an empty folder, to its end
    with compile_cache.enabled():
      assert jax.config.jax_compilation_cache_dir == str(folder)
  compile_cache._made.clear()  # another process
  with compile_cache.enabled():  # the probe is under way, or has failed
    assert jax.config.jax_compilation_cache_dir is None
  assert len(started) == 1
  os.utime(folder / "probing", (0, 0))  # it was ended
  with compile_cache.enabled():
    assert jax.config.jax_compilation_cache_dir is None
  assert len(started) == 2
  (folder / "sound").touch()
  with compile_cache.enabled():
    assert jax.config.jax_compilation_cache_dir == str(folder)


def child(act, folder):
  env = os.environ | {"JAX_PLATFORMS": "cpu"}
  env.pop("JAX_COMPILATION_CACHE_DIR", None)
  command = [sys.executable, "-m", compile_cache._MODULE, act, str(folder)]
  return subprocess.run(command, env=env, capture_output=True).returncode


def test_the_probe(folder):
  (folder / "sound").unlink()
  assert child("write", folder) == 0
  assert (folder / "sound").exists()
  # What cannot be read, or gives another result, is no valid cache.
  for entry in (folder / "probe").glob("*some_work*-cache"):
    entry.write_bytes(entry.read_bytes()[:100])
  assert child("read", folder) != 0


def test_the_flag():
  seen = []
  act = lambda args: seen.append(compile_cache._disabled)
  verb = program.Verb(sample.define_flags, act)
  verb(["--config=shapes", "--nocompile_cache"])
  verb(["--config=shapes"])
  assert seen == [1, 0] and compile_cache._disabled == 0
  # A verb without the flag, such as compile, measures what compiling takes.
  define = lambda values: command_line.define_config(values, "shapes")
  program.Verb(define, act)(["--config=shapes"])
  assert seen == [1, 0, 1]
