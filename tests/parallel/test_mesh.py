"""Where batches live: 8 fake devices, and hosts that are made up."""

import types

import jax
import numpy as np
import pytest

from imagen_jax.parallel import mesh


@pytest.fixture(scope="module")
def devices():
  assert jax.device_count() == 8
  return mesh.make_mesh()


def test_the_mesh_has_all_devices_along_data(devices):
  assert devices.axis_names == ("data", "fsdp", "tensor")
  assert list(devices.devices.flat) == jax.devices()
  some = mesh.make_mesh(devices=jax.devices()[2:5])
  assert list(some.devices.flat) == jax.devices()[2:5]
  assert dict(some.shape) == {"data": 3, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
  ("given", "sizes"),
  [
    ({}, (8, 1, 1)),
    ({"data": 2, "fsdp": -1}, (2, 4, 1)),
    ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ({"fsdp": 2, "tensor": 4}, (1, 2, 4)),
  ],
)
def test_minus_one_is_what_is_left(given, sizes):
  made = mesh.make_mesh(mesh.MeshShape(**given))
  assert tuple(made.shape.values()) == sizes


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"fsdp": 0}, "^mesh fsdp is 0, expected 1 or more, or -1$"),
    ({"fsdp": -1}, "^mesh is .*, expected -1 at most once$"),
    ({"data": 1, "fsdp": 3}, "of 3 devices or a multiple, but there are 8$"),
    ({"fsdp": 3}, "of 3 devices or a multiple, but there are 8$"),
  ],
)
def test_a_mesh_that_cannot_be_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    mesh.make_mesh(mesh.MeshShape(**given))


class Device(types.SimpleNamespace):
  __hash__ = object.__hash__


def test_slices_are_further_devices_along_data():
  """Two made-up slices of eight: fsdp and tensor stay within one."""
  fake = [
    Device(
      id=i,
      slice_index=i % 2,
      platform="cpu",
      process_index=0,
      device_kind="cpu",
    )
    for i in range(16)
  ]
  shape = mesh.MeshShape(fsdp=2, tensor=2)
  assert shape.sizes(16, slices=2) == (4, 2, 2)
  placed = mesh.make_mesh(shape, fake).devices
  assert len({device.id for device in placed.flat}) == 16
  found = [{device.slice_index for device in part.flat} for part in placed]
  assert found == [{0}, {0}, {1}, {1}]
  with pytest.raises(
    ValueError, match="data is 1, expected a multiple of the 2"
  ):
    mesh.make_mesh(mesh.MeshShape(data=1, fsdp=16), fake)


def test_an_axis_may_be_a_part_of_one_of_the_torus():
  """64 of a 16x16 torus: four rows, or a part of each of more."""

  class Chip(types.SimpleNamespace):
    __hash__ = object.__hash__

  fake = [
    Chip(
      id=i,
      platform="tpu",
      device_kind="TPU v5 lite",
      process_index=i // 4,
      core_on_chip=0,
      coords=(i % 16, i // 16, 0),
    )
    for i in range(256)
  ]
  found = mesh.make_mesh(mesh.MeshShape(fsdp=64), fake)
  assert dict(found.shape) == {"data": 4, "fsdp": 64, "tensor": 1}
  assert {device.id for device in found.devices.flat} == set(range(256))


def test_a_batch_is_spread_evenly(devices):
  sharding = mesh.batch_sharding(devices, 16)
  rows = np.arange(16)
  array = mesh.to_global({"a": rows}, sharding, 16)["a"]
  assert array.sharding == sharding
  for i, shard in enumerate(array.addressable_shards):
    assert shard.device == jax.devices()[i]
    np.testing.assert_array_equal(shard.data, rows[2 * i : 2 * i + 2])


def test_an_indivisible_batch_is_refused(devices):
  with pytest.raises(
    ValueError, match="^batch_size is 12, expected a multiple of the 8 devices"
  ):
    mesh.batch_sharding(devices, 12)
  with pytest.raises(ValueError, match="fsdp and data times accumulate 4$"):
    mesh.batch_sharding(devices, 16, parts=4)


def test_rows_are_filled_up_to_all_devices(devices):
  assert [mesh.whole_rows(devices, n) for n in (1, 8, 12)] == [8, 8, 16]


def test_tensor_does_not_spread_rows():
  made = mesh.make_mesh(mesh.MeshShape(data=2, fsdp=2, tensor=2))
  spread = mesh.batch_sharding(made, 4)
  rows = {
    s[0].indices(4)[:2] for s in spread.devices_indices_map((4,)).values()
  }
  assert rows == {(0, 1), (1, 2), (2, 3), (3, 4)}


def test_replicated_is_everything_everywhere(devices):
  array = jax.device_put(np.arange(3), mesh.replicated(devices))
  assert len(array.addressable_shards) == 8
  for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, [0, 1, 2])


@pytest.mark.parametrize("count", [1, 8])
def test_one_host_feeds_everything(count):
  some = mesh.make_mesh(devices=jax.devices()[:count])
  rows = mesh.host_rows(mesh.batch_sharding(some, 16), 16)
  np.testing.assert_array_equal(rows, np.arange(16))


@pytest.mark.parametrize(
  ("spans", "expected"),
  [
    (((0, 2), (2, 4)), [0, 1, 2, 3]),
    (((6, 8), (0, 2)), [0, 1, 6, 7]),  # in pieces, as of a TPU's host
    (((4, 6), (4, 6)), [4, 5]),  # two devices with the same rows
    (((None, None),), range(8)),
  ],
)
def test_a_host_feeds_the_rows_of_its_devices(spans, expected):
  places = {i: (slice(*span),) for i, span in enumerate(spans)}
  sharding = types.SimpleNamespace(
    addressable_devices_indices_map=lambda _: places
  )
  np.testing.assert_array_equal(mesh.host_rows(sharding, 8), expected)


def test_to_global_keeps_values_and_types(devices):
  batch = {
    "image": np.random.default_rng(0).normal(size=(8, 2, 2, 3)),
    "mask": np.array([[True, False]] * 8),
  }
  batch["image"] = batch["image"].astype(np.float32)
  out = mesh.to_global(batch, mesh.batch_sharding(devices, 8), 8)
  for name, value in batch.items():
    assert out[name].dtype == value.dtype
    np.testing.assert_array_equal(out[name], value)


def test_to_global_finds_the_rows_of_a_host_that_has_pieces(monkeypatch):
  """Devices 0, 1, 4, 5 of eight, as of one of two hosts."""
  made = mesh.make_mesh(mesh.MeshShape(fsdp=4))
  spread = mesh.batch_sharding(made, 16)
  mine = {device.id for device in made.devices.flat if device.id % 4 < 2}
  rows = [
    r for d, r in spread.devices_indices_map((16,)).items() if d.id in mine
  ]
  whole = np.arange(16)
  fed = np.sort(np.concatenate([whole[r] for r in rows]))
  monkeypatch.setattr(mesh, "host_rows", lambda *_: fed)
  seen = []

  def from_callback(shape, sharding, callback):
    seen.extend((r, callback(r)) for r in rows)
    return shape

  monkeypatch.setattr(jax, "make_array_from_callback", from_callback)
  assert mesh.to_global({"a": whole[fed] * 10}, spread, 16) == {"a": (16,)}
  assert len(seen) == 4
  for r, values in seen:
    np.testing.assert_array_equal(values, whole[r] * 10)


def test_each_row_is_written_by_one_of_the_processes_that_hold_it(monkeypatch):
  """Two processes of two devices: by rows, by tensor, and whole."""
  made = mesh.make_mesh(mesh.MeshShape(tensor=2), jax.devices()[:4])
  by_rows = {0: slice(0, 2), 1: slice(0, 2), 2: slice(2, 4), 3: slice(2, 4)}
  gather_host_stats = dict.fromkeys(range(4), slice(None))
  shares = []

  class Sharding(types.SimpleNamespace):
    """Where devices of processes hold rows, by a NamedSharding."""

    def devices_indices_map(self, shape):
      devices = [Device(id=i, process_index=self.of[i]) for i in range(4)]
      return {device: (self.held[device.id],) for device in devices}

  for of in ((0, 0, 1, 1), (0, 1, 0, 1)):
    for held in (by_rows, gather_host_stats):
      own = []
      for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda i=process: i)
        own.append(mesh.own_rows(Sharding(of=of, held=held), 4).tolist())
      assert sorted(own[0] + own[1]) == [0, 1, 2, 3]
      shares.append(own)
  turns = [[0, 2], [1, 3]]
  assert shares == [[[0, 1], [2, 3]], turns, turns, turns]
  monkeypatch.undo()
  rows = mesh.batch_sharding(made, 4)
  assert mesh.own_rows(rows, 4).tolist() == [0, 1, 2, 3]
  x = np.arange(12.0).reshape(4, 3)
  np.testing.assert_array_equal(mesh.local_rows(mesh.put_rows(x, rows)), x)
  whole = mesh.put_rows(x, mesh.replicated(made))
  np.testing.assert_array_equal(mesh.local_rows(whole), x)
