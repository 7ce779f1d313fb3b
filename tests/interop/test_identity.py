"""What weights are: a text that changes with their contents alone."""

import hashlib
import os
import shutil

import pytest

from imagen_jax.interop import identity as module
from imagen_jax.interop.identity import identity


def test_a_file_is_its_bytes(tmp_path):
  one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
  one.write_bytes(b"weights")
  shutil.copy(one, two)
  assert identity(str(one)) == identity(str(two))
  assert identity(str(one)) == hashlib.sha256(b"weights").hexdigest()
  two.write_bytes(b"others!")
  assert identity(str(one)) != identity(str(two))


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
  """Weights may be tens of GB, and are asked for several times a call."""
  path, read = tmp_path / "a.safetensors", []
  sha256 = module._sha256
  monkeypatch.setattr(module, "_sha256", lambda p: read.append(p) or sha256(p))
  path.write_bytes(b"weights")
  first = identity(str(path))
  assert identity(str(path)) == first and len(read) == 1
  path.write_bytes(b"others!")  # in place, and of the same size
  os.utime(path, ns=(1, 1))
  assert identity(str(path)) != first and len(read) == 2


def test_the_hubs_files_are_not_read_again(tmp_path):
  """Its cache names them by their checksum, and links to them."""
  blob = tmp_path / ("ab" * 32)
  blob.write_bytes(b"not what the name says")
  link = tmp_path / "model.safetensors"
  link.symlink_to(blob)
  assert identity(str(link)) == "ab" * 32


def test_a_folder_is_its_files(tmp_path):
  first, second = tmp_path / "first", tmp_path / "second"
  first.mkdir()
  (first / "config.json").write_text("{}")
  (first / "model.safetensors").write_bytes(b"weights")
  shutil.copytree(first, second)
  assert identity(str(first)) == identity(str(second))
  (second / "model.safetensors").write_bytes(b"others!")
  assert identity(str(first)) != identity(str(second))


def test_a_run_is_its_newest_checkpoint(tmp_path):
  for step in (9, 10):
    notes = tmp_path / f"checkpoints/{step}/checksums/metadata"
    notes.parent.mkdir(parents=True)
    notes.write_text(f"checksums of {step}")
  before = identity(str(tmp_path))
  assert before.startswith("step 10, checksum ")
  notes.write_text("others")
  assert identity(str(tmp_path)) != before


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(ValueError, match="nothing is not there, expected weig"):
    identity(str(tmp_path / "nothing"))
