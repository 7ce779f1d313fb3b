"""Checkpoints: round trips, how many are kept, and damage of all kinds."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.runtime import checkpoints
from imagen_jax.training.step import TrainState, init_state

OPTIMIZER = optax.adam(1e-3)


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


def save(workdir, *steps: int, keep: int = 3) -> None:
  with checkpoints.open_checkpoints(str(workdir), keep=keep) as manager:
    for step in steps:
      checkpoints.save(manager, step, make_state(step), {"seed": 0})


def restore(workdir, like: TrainState) -> TrainState | None:
  with checkpoints.open_checkpoints(str(workdir), keep=3) as manager:
    return checkpoints.restore(manager, like)


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


@pytest.fixture
def run(saved, tmp_path):
  """A copy of it, to be damaged."""
  return shutil.copytree(saved, tmp_path / "run")


def test_the_newest_state_comes_back_whole(saved):
  assert_same(restore(saved, make_state(0)), make_state(9))


def test_a_state_comes_back_where_like_has_it(saved):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  state = restore(saved, jax.device_put(make_state(0), spread))
  assert_same(state, make_state(9))
  assert all(x.sharding == spread for x in jax.tree.leaves(state))


def test_a_new_run_has_no_state(tmp_path):
  assert restore(tmp_path / "new", make_state(0)) is None


def test_only_the_last_are_kept(tmp_path):
  save(tmp_path, 1, 2, 3, 4, keep=2)
  assert kept(tmp_path) == ["3", "4"]


def test_an_unfinished_checkpoint_is_no_checkpoint(run):
  # As a process that was killed while it saved leaves it.
  left = run / "checkpoints" / "12.orbax-checkpoint-tmp"
  shutil.copytree(run / "checkpoints" / "9" / "state", left / "state")
  assert_same(restore(run, make_state(0)), make_state(9))
  assert kept(run) == ["4", "9"]


def test_the_average_alone(saved):
  params = jax.eval_shape(make_params)
  step, ema, config = checkpoints.restore_ema(str(saved), params)
  assert (step, config) == (9, {"seed": 0})
  assert_same(ema, make_state(9).ema)


def test_no_run_at_all(tmp_path):
  with pytest.raises(ValueError, match="nowhere is no training run: it has no"):
    checkpoints.restore_ema(str(tmp_path / "nowhere"), make_params())
  assert list(tmp_path.iterdir()) == []


def test_a_run_without_checkpoints(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(ValueError, match="checkpoints holds no complete checkp"):
    checkpoints.restore_ema(str(tmp_path), make_params())


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


DAMAGES = (truncate, delete, delete_state, delete_metadata)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(run, damage):
  damage(run / "checkpoints" / "9")
  before = sorted(run.rglob("*"))
  said = f"checkpoint {run}/checkpoints/9 cannot be read; if it is damaged, rem"
  with pytest.raises(ValueError, match=said):
    restore(run, make_state(0))
  with pytest.raises(ValueError, match=said):
    checkpoints.restore_ema(str(run), make_params())
  assert sorted(run.rglob("*")) == before
  # What the sentence says is so.
  shutil.rmtree(run / "checkpoints" / "9")
  assert_same(restore(run, make_state(0)), make_state(4))


KERNEL, BIAS = jnp.ones((40, 300)), jnp.ones(300)


@pytest.mark.parametrize(
  ("params", "said"),
  [
    (
      make_params(200),
      r"has .*/net/bias of shape \(300,\), expected \(200,\)$",
    ),
    (make_params(text={"a": BIAS}), "has no array ema/text/a$"),
    ({"net": {"kernel": KERNEL}}, "has an unknown array ema/net/bias$"),
    (
      {"net": {"kernel": KERNEL, "scale": BIAS}},
      "has an unknown array ema/net/bias$",
    ),
  ],
  ids=["shape", "more", "fewer", "other"],
)
def test_a_checkpoint_of_another_net_is_refused(saved, params, said):
  said = f"^checkpoint {saved}/checkpoints/9 {said}"
  with pytest.raises(ValueError, match=said):
    restore(saved, make_state(0, params))
  with pytest.raises(ValueError, match=said):
    checkpoints.restore_ema(str(saved), params)


def test_a_workdir_that_cannot_be(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="file/run cannot be written: Not a dir"):
    checkpoints.open_checkpoints(str(tmp_path / "file" / "run"), keep=1)
