"""Damaged checkpoints are found, logged and moved aside; older ones serve."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.checkpoints import manager
from imagen_jax.checkpoints.manager import Checkpoints

# Nothing is printed beside what is logged, such as to a closed loop.
pytestmark = pytest.mark.filterwarnings(
  "error::pytest.PytestUnraisableExceptionWarning"
)
CONFIG = {"data": {"seed": 0}, "train": {"steps": 9}}


def make_state(step: int) -> dict:
  """A state of random numbers, others for every step."""
  rng = np.random.default_rng(step)
  make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  net = lambda: {"kernel": make(40, 300), "bias": make(300)}
  return {"step": jnp.array(step), "params": net(), "ema": net()}


def save(workdir, *steps: int) -> None:
  with Checkpoints(str(workdir), keep=3) as run:
    for step in steps:
      run.save(step, make_state(step), CONFIG)


def restore(workdir):
  """(state, what was logged)."""
  said = []
  with Checkpoints(str(workdir), keep=3, log=said.append) as run:
    return run.restore(make_state(0), CONFIG), said


def kept(workdir) -> list[str]:
  return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A run with checkpoints of two steps, 4 and 9."""
  workdir = tmp_path_factory.mktemp("run")
  save(workdir, 4, 9)
  return workdir


@pytest.fixture
def run(saved, tmp_path):
  """A copy of it, to be damaged."""
  return shutil.copytree(saved, tmp_path / "run")


def data_files(checkpoint):
  return list((checkpoint / "state" / "ocdbt.process_0" / "d").iterdir())


def truncate(checkpoint):
  for path in data_files(checkpoint):
    path.write_bytes(path.read_bytes()[:20])


def delete(checkpoint):
  for path in data_files(checkpoint):
    path.unlink()


def delete_state(checkpoint):
  shutil.rmtree(checkpoint / "state")


def delete_metadata(checkpoint):
  (checkpoint / "state" / "_METADATA").unlink()


def delete_config(checkpoint):
  (checkpoint / "config" / "metadata").unlink()


def other_config(checkpoint):
  path = checkpoint / "config" / "metadata"
  path.write_text(path.read_text().replace("0", "1"))


def other_values(checkpoint):
  """Whole and valid for Orbax, but not what was saved."""
  shutil.rmtree(checkpoint / "state")
  shutil.copytree(checkpoint.with_name("4") / "state", checkpoint / "state")


DAMAGES = (
  truncate, delete, delete_state, delete_metadata, delete_config,
  other_config, other_values,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, damage):
  damage(run / "checkpoints" / "9")
  before = sorted(run.rglob("*"))
  path = f"{run}/checkpoints/9"
  with pytest.raises(ValueError, match=f"checkpoint {path} cannot be read; if"):
    manager.restore_ema(str(run), make_state(0)["ema"])
  assert sorted(run.rglob("*")) == before
  said = []
  with Checkpoints(str(run), keep=3, log=said.append) as again:
    assert_same(again.restore(make_state(0), CONFIG), make_state(4))
    (line,) = said
    assert line.startswith(f"checkpoint {path} is damaged (")
    assert line.endswith("); it is renamed 9.damaged, and step 4 taken")
    # Nothing is lost, and the step can be saved again.
    assert kept(run) == ["4", "9.damaged"]
    assert len(list(run.rglob("*"))) == len(before)
    again.save(9, make_state(9), CONFIG)
  assert_same(restore(run)[0], make_state(9))
  damage(run / "checkpoints" / "9")
  assert_same(restore(run)[0], make_state(4))
  assert kept(run) == ["4", "9.damaged", "9.damaged-2"]


def test_none_that_can_be_read_is_no_new_run(run):
  for step in ("4", "9"):
    delete(run / "checkpoints" / step)
  said = f"^no checkpoint in {run}/checkpoints can be read, the newest, 9, beca"
  for _ in range(2):  # and again
    with pytest.raises(ValueError, match=said):
      restore(run)
  assert kept(run) == ["4", "9"]


def test_any_flipped_byte_is_found_or_harmless(run):
  newest = run / "checkpoints" / "9"
  old, new = make_state(4), make_state(9)
  found = []
  for path in sorted(p for p in newest.rglob("*") if p.is_file()):
    sound = path.read_bytes()
    for at in np.unique(np.linspace(0, len(sound) - 1, 5, dtype=int)):
      spoiled = bytearray(sound)
      spoiled[at] ^= 1 << (at % 8)
      path.write_bytes(spoiled)
      state, said = restore(run)
      assert_same(state, old if said else new)
      if said:
        newest.with_name("9.damaged").rename(newest)
        found.append(path.parent.name)
    path.write_bytes(sound)
  # Those of Orbax's that hold only when and where it was saved are harmless.
  assert {"d", "config", "checksums", "state"} <= {*found}


def test_a_date_that_cannot_be_is_harmless(run):
  for step in ("4", "9"):
    path = run / "checkpoints" / step / "_CHECKPOINT_METADATA"
    text = re.sub(r'("commit_[a-z_]+": )\d+', r"\g<1>1e300", path.read_text())
    assert "1e300" in text
    path.write_text(text)
  assert_same(restore(run)[0], make_state(9))
  save(run, 12)
  assert kept(run) == ["12", "4", "9"]


def test_a_checkpoint_of_before_there_were_checksums(run):
  shutil.rmtree(run / "checkpoints" / "9" / "checksums")
  assert_same(restore(run)[0], make_state(9))
