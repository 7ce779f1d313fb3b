"""Weights in safetensors files: what comes back, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax

from imagen_jax.checkpoints import manager
from imagen_jax.interop import weights
from imagen_jax.parallel import mesh
from imagen_jax.parallel.sharding import Placement
from imagen_jax.training.step import Skipped, TrainState


def make_params() -> dict:
  """Values that bfloat16 holds exactly, in a tree with a list-like name."""
  kernel = jnp.arange(12.0).reshape(3, 4)
  return {"a": {"kernel": kernel, "bias": jnp.ones(4)}, "b_0": {"w": kernel.T}}


LIKE = jax.eval_shape(make_params)


@pytest.fixture
def path(tmp_path):
  path = tmp_path / "net.safetensors"
  weights.save_weights(path, make_params(), metadata={"step": "7"})
  return path


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_round_trip(path):
  assert_same(weights.load_weights(path, LIKE), make_params())
  assert_same(weights.load(path, LIKE), make_params())
  assert weights.read_metadata(path) == {"step": "7"}


def test_the_file_is_bfloat16_and_params_are_as_like_is(path):
  stored = safetensors.flax.load_file(path)
  assert {x.dtype for x in stored.values()} == {jnp.dtype(jnp.bfloat16)}
  half = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float16), LIKE
  )
  for like, dtype in ((LIKE, jnp.float32), (half, jnp.float16)):
    params = weights.load_weights(path, like)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(dtype)}


def test_float32_loses_nothing(tmp_path):
  params = jax.tree.map(lambda x: x + 1 / 3, make_params())
  path = tmp_path / "net.safetensors"
  size = weights.save_weights(path, params, dtype=jnp.float32)
  assert size == path.stat().st_size
  assert_same(weights.load_weights(path, LIKE), params)


def test_loading_compiles_nothing(tmp_path):
  """A program for every shape once took most of a small cascade's start."""
  path = tmp_path / "net.safetensors"
  params = {"odd": np.ones((3, 7, 11), np.float32)}
  weights.save_weights(path, params)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: events.append(event)
  )
  assert_same(weights.load_weights(path, params), params)
  assert [event for event in events if "compile" in event] == []
  jax.jit(lambda x: 3 * x)(params["odd"])
  assert [event for event in events if "compile" in event]  # it does listen


def test_parameters_are_named_by_path(path):
  names = json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}")
  assert set(names) - {"__metadata__"} == {"a/kernel", "a/bias", "b_0/w"}


def test_a_run_gives_its_averaged_weights(tmp_path):
  ema = make_params()
  zeros = jax.tree.map(jnp.zeros_like, ema)
  skipped = Skipped(jnp.array(0), jnp.array(0))
  state = TrainState(jnp.array(3), zeros, ema, (), skipped)
  with manager.Checkpoints(str(tmp_path), keep=1) as saved:
    saved.save(3, state, {})
  assert_same(weights.load(tmp_path, LIKE), ema)
  half = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), LIKE
  )
  expected = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), ema)
  found = weights.load(tmp_path, half)  # its checksums are those of float32
  assert_same(found, expected)
  assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}


def test_each_device_gets_its_own_shards_only(tmp_path, monkeypatch):
  """Of a file and of a run: nothing is put whole on one device first."""
  params = {"net": {"kernel": np.arange(32.0, dtype=np.float32).reshape(8, 4)}}
  half = {"net": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)}}
  weights.save_weights(tmp_path / "a.safetensors", params)
  skipped = Skipped(jnp.array(0), jnp.array(0))
  state = TrainState(jnp.array(3), params, params, (), skipped)
  with manager.Checkpoints(str(tmp_path / "run"), keep=1) as saved:
    saved.save(3, jax.tree.map(jnp.asarray, state), {})
  read, load = [], manager.load
  monkeypatch.setattr(
    manager, "load", lambda path, like, *a: read.append(like) or
    load(path, like, *a),
  )  # fmt: skip
  placement = Placement(
    mesh.make_mesh(mesh.MeshShape(1, 2, 2), jax.devices()[:4])
  )
  (sharding,) = jax.tree.leaves(placement.params(half))
  for name in ("a.safetensors", "run"):
    found = weights.load(tmp_path / name, half, placement)["net"]["kernel"]
    assert found.sharding == sharding and found.dtype == jnp.bfloat16
    assert {s.data.shape for s in found.addressable_shards} == {(4, 4)}
    np.testing.assert_array_equal(found, params["net"]["kernel"])
  (like,) = jax.tree.leaves(read)
  assert like.sharding == sharding


def spoil(data: bytes) -> dict[str, bytes]:
  header = int.from_bytes(data[:8], "little")
  return {
    "empty": b"",
    "header": data[:20],
    "data": data[: header + 20],
    "text": b"version https://example.org/spec/v1\nsize 2000\n" * 9,
    "length": b"\xff" * 8 + data[8:],
    "longer": data + b"\0" * 8,
  }


@pytest.mark.parametrize("how", list(spoil(b"")))
def test_a_damaged_file_is_named(path, how):
  path.write_bytes(spoil(path.read_bytes())[how])
  for read in (weights.load_weights, weights.check_file):
    with pytest.raises(ValueError) as caught:
      read(path, LIKE)
    assert str(caught.value).startswith(
      f"weights {path} are damaged or not safetensors"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"abc",
    b"\xff" * 8,
    (2**62).to_bytes(8, "little") + b"{}",
    (9).to_bytes(8, "little") + b"{}",
    (2).to_bytes(8, "little") + b"[]",
    (2).to_bytes(8, "little") + b"{,",
    (20).to_bytes(8, "little") + b'{"__metadata__": [ ]}',
    (200_000).to_bytes(8, "little") + b"[" * 200_000,
  ],
)
def test_metadata_of_a_damaged_file(tmp_path, data):
  path = tmp_path / "a.safetensors"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=f"weights {path} (are damaged|is )"):
    weights.read_metadata(path)


def test_no_file(tmp_path):
  path = tmp_path / "net.safetensors"
  for read in (weights.load, weights.check_file):
    with pytest.raises(ValueError, match=f"^weights {path} cannot be read: No"):
      read(path, LIKE)
    with pytest.raises(ValueError, match=f"^{tmp_path} is no training run: it"):
      read(tmp_path, LIKE)
    with pytest.raises(ValueError, match="a.pt are a pickle"):
      read(tmp_path / "a.pt", LIKE)
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(ValueError, match="holds no complete checkpoint"):
    weights.check_file(tmp_path, LIKE)


def test_a_check_reads_the_header_alone(path):
  """As on gs://, where a part cannot be read."""
  weights.check_file(path, LIKE)
  found = weights._described(path)
  assert {n: str(t) for n, t in found.items()} == {
    n: str(t) for n, t in weights.open_file(path).items()
  }
  header = json.dumps({"a": {"dtype": [], "shape": 3}}).encode()
  path.write_bytes(len(header).to_bytes(8, "little") + header)
  with pytest.raises(ValueError, match="are damaged or not safetensors: the h"):
    weights._described(path)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"b_0/w": None}, "lack b_0/w$"),
    ({"c": jnp.ones(2)}, "have the unknown c$"),
    (
      {"a/bias": jnp.ones((4, 1))},
      r"have a/bias as float32\[4,1\] \(expected 4\)$",
    ),
  ],
  ids=["fewer", "more", "shape"],
)
def test_weights_of_another_net_are_refused(path, change, said):
  flat = safetensors.flax.load_file(path) | change
  flat = {name: v for name, v in flat.items() if v is not None}
  path.write_bytes(safetensors.flax.save(flat))
  net = "are not those of the config's net: they"
  with pytest.raises(ValueError, match=f"^weights {path} {net} {said}"):
    weights.load_weights(path, LIKE)


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
  path = tmp_path / "new" / "folder" / "net.safetensors"
  weights.save_weights(path, make_params())
  weights.save_weights(path, make_params())
  assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("where", ["file/net.safetensors", "taken"])
def test_a_place_that_cannot_be_written(tmp_path, where):
  (tmp_path / "file").touch()
  (tmp_path / "taken" / "full").mkdir(parents=True)
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(ValueError, match=f"{where} cannot be written: [A-Z]"):
    weights.save_weights(tmp_path / where, make_params())
  assert sorted(tmp_path.rglob("*")) == before
