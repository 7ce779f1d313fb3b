"""A checkpoint that may not be read is not damaged, and stays as it is."""

import contextlib
import os
import pathlib
import shutil
import tempfile

import jax.numpy as jnp
import pytest
from gcsfs.retry import validate_response

from imagen_jax.checkpoints import manager, verify
from imagen_jax.parallel.processes import Failed

STATE = {"step": jnp.array(0), "ema": {"kernel": jnp.ones((3, 4))}}
CLOSED = (
  ".", "config", "config/metadata", "checksums", "checksums/metadata", "state",
  "state/_METADATA", "state/manifest.ocdbt",
)  # fmt: skip


@pytest.fixture(scope="module")
def saved():
  """A run of two checkpoints, in a folder that anyone may enter."""
  with tempfile.TemporaryDirectory() as folder:
    run = pathlib.Path(folder, "run")
    with manager.Checkpoints(str(run), keep=3) as checkpoints:
      for step in (4, 9):
        checkpoints.save(step, STATE, {})
    yield run


@pytest.fixture
def run(saved):
  """A copy of it; for every user, the files are another's."""
  copy = shutil.copytree(saved, saved.with_name("copy"))
  for path in (copy.parent, copy, *copy.rglob("*")):
    path.chmod(0o777 if path.is_dir() else 0o666)
  yield copy
  shutil.rmtree(copy)


@contextlib.contextmanager
def no_root():
  """As another user, for whom permissions count."""
  root = os.geteuid() == 0
  if root:
    os.seteuid(65534)
  try:
    yield
  finally:
    if root:
      os.seteuid(0)


@pytest.mark.parametrize("closed", CLOSED)
def test_the_newest_may_not_be_read(run, closed):
  """It was renamed, and an older one used."""
  newest = run / "checkpoints" / "9"
  path = newest / closed
  mode = path.stat().st_mode
  path.chmod(0)
  said = f"checkpoint {newest} may not be read, expected permission to read it"
  try:
    with no_root():
      with (
        manager.Checkpoints(str(run), keep=3) as checkpoints,
        pytest.raises(ValueError, match=f"^{said}: Permission denied$"),
      ):
        checkpoints.restore(STATE, {})
      with pytest.raises(ValueError, match=f"^{said}: Permission denied$"):
        manager.restore_ema(str(run), STATE["ema"])
  finally:
    path.chmod(mode)
  assert sorted(p.name for p in newest.parent.iterdir()) == ["4", "9"]
  assert manager.restore_ema(str(run), STATE["ema"])[0] == 9


class Item:
  """A file of an object store that answers with a status."""

  def __init__(self, status):
    self.status = status

  def iterdir(self):
    return [self]

  def is_dir(self):
    return False

  def open(self, mode):
    validate_response(self.status, b"not yours", "b/o")


@pytest.mark.parametrize(
  ("status", "denied"), [(401, True), (403, True), (404, False), (500, False)]
)
def test_the_answers_of_a_bucket(status, denied):
  if denied:
    with pytest.raises(
      ValueError, match="may not be read, expected permission"
    ):
      verify.check_allowed(Item(status))
  else:
    verify.check_allowed(Item(status))


@pytest.mark.parametrize(
  "text", ["[" * 100_000, "[]", "{", "3", '{"a": ' * 101 + "1" + "}" * 101]
)
def test_a_config_that_is_none(run, text):
  """Anyone who may write into a workdir may write this."""
  newest = run / "checkpoints" / "9"
  (newest / "config" / "metadata").write_text(text)
  with pytest.raises(
    Failed if text in ("[]", "3") else ValueError, match="its"
  ):
    verify.read_config(newest)
  with pytest.raises(ValueError, match="9 cannot be read; if it is damaged"):
    manager.restore_ema(str(run), STATE["ema"])
