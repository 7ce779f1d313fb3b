"""Checkpoints: round trips, which are kept, and which are refused."""

import logging
import os
import shutil
import sys

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.checkpoints import manager, verify
from imagen_jax.checkpoints.manager import Checkpoints
from imagen_jax.progress import compilations
from imagen_jax.training.step import TrainState, init_state

OPTIMIZER = optax.adam(1e-3)
CONFIG = {"data": {"seed": 0}, "train": {"steps": 9}}


def make_params(width: int = 300, **more) -> dict:
  """A net's weights, random."""
  rng = np.random.default_rng(width)
  kernel = rng.normal(size=(40, width)).astype(np.float32)
  params = {"net": {"kernel": kernel, "bias": np.ones(width, np.float32)}}
  return jax.tree.map(jnp.asarray, params | more)


def make_state(step: int, params: dict | None = None) -> TrainState:
  """A state whose parts all differ."""
  state = init_state(params or make_params(), OPTIMIZER)
  return state.replace(
    step=jnp.asarray(step, jnp.int32),
    ema=jax.tree.map(lambda p: p + step, state.params),
    opt_state=jax.tree.map(lambda p: p + 2 * step, state.opt_state),
  )


def save(workdir, *steps: int, **options) -> None:
  with Checkpoints(str(workdir), **({"keep": 3} | options)) as run:
    for step in steps:
      run.save(step, make_state(step), CONFIG)
      run.wait()


def restore(workdir, like=None, config=CONFIG, **options):
  """(state, what was logged)."""
  said = []
  with Checkpoints(str(workdir), keep=3, log=said.append) as run:
    return run.restore(like or make_state(0), config, **options), said


def kept(workdir) -> list[str]:
  return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A run with checkpoints of two steps, 4 and 9; only to be read."""
  workdir = tmp_path_factory.mktemp("run")
  save(workdir, 4, 9)
  return workdir


def test_the_newest_state_comes_back_whole(saved):
  state, said = restore(saved)
  assert_same(state, make_state(9))
  assert said == []


def test_a_state_saved_on_one_mesh_comes_back_on_another(tmp_path):
  devices = np.array(jax.devices())
  rows = Mesh(devices.reshape(4, 2), ("a", "b"))
  columns = Mesh(devices[::-1].reshape(2, 4), ("a", "b"))

  def place(state, mesh, *axes):
    spread = NamedSharding(mesh, PartitionSpec(*axes))
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
      lambda x: jax.device_put(x, spread if x.ndim == 2 else whole), state
    )

  with Checkpoints(str(tmp_path), keep=1) as run:
    run.save(9, place(make_state(9), rows, "a", "b"), CONFIG)
  like = place(make_state(0), columns, None, "b")
  state, said = restore(tmp_path, like)
  assert_same(state, make_state(9))
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
    assert x.sharding == y.sharding
  assert said == []


def test_all_bits_come_back(tmp_path):
  # A zero's sign, and numbers that are none: stores may have ideas of them.
  odd = np.array([-0.0, np.nan, np.inf, 1e-42], np.float32)
  state = {"odd": jnp.asarray(odd), "zeros": -jnp.zeros(9), "step": np.array(9)}
  with Checkpoints(str(tmp_path), keep=1) as run:
    run.save(9, state, CONFIG)
    back = run.restore(state, CONFIG)
  for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_new_run_has_no_state(tmp_path):
  assert restore(tmp_path / "new") == (None, [])


def test_the_last_are_kept_and_every_so_many_steps(tmp_path):
  save(tmp_path, 1, 2, 3, 4, keep=2)
  assert kept(tmp_path) == ["3", "4"]
  save(tmp_path, 5, 6, 7, 8, 9, keep=2, keep_every=3)
  assert kept(tmp_path) == ["3", "6", "8", "9"]


def test_a_step_is_saved_once(tmp_path):
  save(tmp_path, 3, 3)
  assert kept(tmp_path) == ["3"]


def test_a_save_finds_its_programs_compiled(tmp_path):
  """Of a width that no other test compiles for."""
  state = jax.tree.map(jnp.asarray, make_state(3, make_params(width=277)))
  with (
    compilations() as compiled,
    manager.Checkpoints(str(tmp_path), keep=1) as run,
  ):
    run.compile(state)
    before = compiled.count
    run.save(3, state, CONFIG)
  assert compiled.count == before > 0


def test_the_average_alone(saved):
  params = jax.eval_shape(make_params)
  step, ema, config = manager.restore_ema(str(saved), params)
  assert (step, config) == (9, CONFIG)
  assert_same(ema, make_state(9).ema)


def test_orbax_logs_no_advice(tmp_path, monkeypatch):
  """Such as to save less often, when a save had to wait for another."""
  module = sys.modules[ocp.CheckpointManager.__module__]
  name = "_WAIT_FOR_PREV_SAVE_WARNING_THRESHOLD_SECS"
  assert getattr(module, name) > 0
  monkeypatch.setattr(module, name, -1.0)
  seen = []
  handler = logging.Handler()
  handler.emit = lambda record: seen.append(record.getMessage())
  log = absl.logging.get_absl_logger()
  log.addHandler(handler)
  try:
    save(tmp_path, 1, 2)
    absl.logging.warning("another's")
  finally:
    log.removeHandler(handler)
  assert seen == ["another's"]


def replace_while_read(monkeypatch, owner, name: str, times: int) -> None:
  """Has a newer checkpoint take the place of the one that is being read.

  It happens just before owner.name is called, the first `times` times.
  """
  read, left = getattr(owner, name), iter(range(times))

  def replaced(path, *args):
    if next(left, None) is not None:
      path = path.parent if path.name in ("state", "checksums") else path
      shutil.move(path, path.with_name(str(int(path.name) + 1)))
    return read(path, *args)

  monkeypatch.setattr(owner, name, replaced)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
  ("owner", "name"),
  [
    (manager, "read_config"),
    (manager, "load"),
    (verify, "_read_notes"),
    (verify, "_read_tree"),
  ],
)
def test_the_average_of_a_run_that_goes_on(
  tmp_path, monkeypatch, owner, name, times
):
  save(tmp_path, 9)
  replace_while_read(monkeypatch, owner, name, times)
  step, ema, config = manager.restore_ema(str(tmp_path), make_params())
  assert (step, config) == (9 + times, CONFIG)
  assert_same(ema, make_state(9).ema)


def test_the_average_of_a_run_that_saves_too_fast(tmp_path, monkeypatch):
  save(tmp_path, 9)
  replace_while_read(monkeypatch, verify, "_read_tree", 1000)
  with pytest.raises(
    ValueError, match="in a row were replaced .* raise train."
  ):
    manager.restore_ema(str(tmp_path), make_params())


def test_the_average_while_a_mesh_is_set(saved):
  mesh = jax.make_mesh((8,), ("a",), (jax.sharding.AxisType.Auto,))
  with jax.set_mesh(mesh):
    _, ema, _ = manager.restore_ema(str(saved), make_params())
  assert_same(ema, make_state(9).ema)


def test_no_run_at_all(tmp_path):
  with pytest.raises(ValueError, match="nowhere is no training run: it has no"):
    manager.restore_ema(str(tmp_path / "nowhere"), make_params())
  assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(ValueError, match="checkpoints holds no complete checkp"):
    manager.restore_ema(str(tmp_path), make_params())


def test_another_config_is_refused(saved):
  changed = {"data": {"seed": 1}, "train": {"steps": 99}}
  said = f"checkpoint {saved}/checkpoints/9 is of another config: data.seed was"
  with pytest.raises(ValueError, match=f"^{said} 0, is 1 .--allow_config_chan"):
    restore(saved, config=changed)
  state, told = restore(saved, config=changed, allow_config_change=True)
  assert_same(state, make_state(9))
  assert told == [f"{said} 0, is 1"]
  assert restore(saved, config=CONFIG | {"train": {}})[1] == []


def test_nothing_is_removed_before_the_config_is_accepted(tmp_path):
  save(tmp_path, 4)
  half = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
  half.mkdir()
  with pytest.raises(ValueError, match="data.seed was 0, is 1"):
    restore(tmp_path, config={"data": {"seed": 1}})
  with pytest.raises(ValueError, match="has no array"):
    restore(tmp_path, make_state(0, make_params(text={"a": jnp.ones(3)})))
  assert kept(tmp_path) == ["4", half.name]
  restore(tmp_path)
  assert kept(tmp_path) == ["4"]


KERNEL, BIAS = jnp.ones((40, 300)), jnp.ones(300)


@pytest.mark.parametrize(
  ("params", "said"),
  [
    (make_params(200), r"has .*net/bias as float32.300., expected float32.200"),
    (make_params(text={"a": BIAS}), "has no array ema/text/a$"),
    ({"net": {"kernel": KERNEL}}, "has an unknown array ema/net/bias$"),
    (
      {"net": {"kernel": KERNEL, "scale": BIAS}},
      "has an unknown array ema/net/bias$",
    ),
    (
      {"net": {"kernel": KERNEL, "bias": BIAS.astype(jnp.bfloat16)}},
      r"has .*net/bias as float32.300., expected bfloat16.300.$",
    ),
  ],
  ids=["shape", "more", "fewer", "other", "dtype"],
)
def test_a_checkpoint_of_another_net_is_refused(saved, params, said):
  said = f"^checkpoint {saved}/checkpoints/9 {said}"
  with pytest.raises(ValueError, match=said):
    restore(saved, make_state(0, params))
  with pytest.raises(ValueError, match=said):
    manager.restore_ema(str(saved), params)
  assert kept(saved) == ["4", "9"]


def test_a_workdir_that_cannot_be(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="file/run cannot be written: Not a dir"):
    Checkpoints(str(tmp_path / "file" / "run"), keep=1)


def test_a_folder_that_takes_no_file_is_found_at_the_start(
  tmp_path, monkeypatch
):
  (tmp_path / "checkpoints").mkdir()

  def refuse(path, data):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr(type(manager.directory("/")), "write_bytes", refuse)
  said = f"^workdir {tmp_path} cannot be written: Permission denied$"
  with pytest.raises(ValueError, match=said):
    Checkpoints(str(tmp_path), keep=1)


def test_where_checkpoints_lie(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", "/home/me")
  assert os.fspath(manager.directory("a")) == f"{tmp_path}/a/checkpoints"
  assert os.fspath(manager.directory("~/a")) == "/home/me/a/checkpoints"
  cloud = manager.directory("gs://bucket/a")
  assert os.fspath(cloud) == "gs://bucket/a/checkpoints"
