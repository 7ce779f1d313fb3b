"""The device mesh, and the sharding of a batch over it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from imagen_jax.types import BATCH_AXES


@dataclasses.dataclass(frozen=True)
class MeshShape:
  """Describes the number of devices along each axis of a mesh.

  One of the numbers may be -1: all devices that the other axes leave.

  Attributes:
    data: shards the batch and replicates the weights. The slices of a pod,
      which a slower network joins, lie along it.
    fsdp: shards the batch and the weights, which are all-gathered for use.
    tensor: shards channels or heads of the weights, without all-gathering.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      if size < 1 and size != -1:
        raise ValueError(f"mesh {name} is {size}, expected 1 or more, or -1")
    if list(sizes.values()).count(-1) > 1:
      raise ValueError(f"mesh is {sizes}, expected -1 at most once")

  def sizes(self, count: int, slices: int = 1) -> tuple[int, int, int]:
    """Returns the number of devices along each axis.

    Args:
      count: the number of all devices.
      slices: the number of slices of a pod.

    Raises:
      ValueError: the axes do not fit the devices or the slices.
    """
    given = dataclasses.asdict(self)
    known = math.prod(size for size in given.values() if size != -1)
    sizes = [count // known if n == -1 else n for n in given.values()]
    if math.prod(sizes) != count:
      raise ValueError(
        f"mesh is {given}, of {known} devices or a multiple, but there are "
        f"{count}"
      )
    if sizes[0] % slices:
      raise ValueError(
        f"mesh data is {sizes[0]}, expected a multiple of the {slices} slices"
      )
    return tuple(sizes)


def make_mesh(
  shape: MeshShape = MeshShape(), devices: Sequence[Any] | None = None
) -> Mesh:
  """Makes the mesh of all or given devices, with neighbours along tensor."""
  devices = jax.devices() if devices is None else list(devices)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  sizes = shape.sizes(len(devices), slices)
  # An axis may be part of an axis of the torus, such as 64 chips of 16x16.
  split = {"allow_split_physical_axes": True}
  if slices == 1:
    placed = mesh_utils.create_device_mesh(sizes, devices, **split)
  else:
    inner = (sizes[0] // slices, *sizes[1:])
    placed = mesh_utils.create_hybrid_device_mesh(
      inner, (slices, 1, 1), devices, **split
    )
  names = [field.name for field in dataclasses.fields(MeshShape)]
  return Mesh(placed, names, axis_types=(AxisType.Auto,) * len(names))


def row_ways(mesh: Mesh) -> int:
  """Returns the number of devices over which a batch is sharded."""
  return math.prod(mesh.shape[name] for name in BATCH_AXES)


def whole_rows(mesh: Mesh, rows: int) -> int:
  """Rounds a number of rows up to a multiple of the devices that shard them."""
  ways = row_ways(mesh)
  return -(-rows // ways) * ways


def batch_sharding(
  mesh: Mesh, global_batch: int, parts: int = 1
) -> NamedSharding:
  """Returns the sharding of a batch over its examples.

  Args:
    mesh: the devices.
    global_batch: the number of examples, over all hosts.
    parts: the number of equal parts of the batch, computed one after another.

  Raises:
    ValueError: the examples do not divide over the devices and parts.
  """
  ways = row_ways(mesh)
  if global_batch % (ways * parts):
    times = f" times accumulate {parts}" if parts > 1 else ""
    raise ValueError(
      f"batch_size is {global_batch}, expected a multiple of the {ways} "
      f"devices along {' and '.join(BATCH_AXES)}{times}"
    )
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that replicates an array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def host_rows(sharding: NamedSharding, global_batch: int) -> np.ndarray:
  """Returns the examples of a batch that this host's devices hold, in order.

  They are not contiguous: the four chips of a TPU host are neighbours along two
  axes of the torus. Hosts that a tensor axis spans feed the same examples.
  """
  places = sharding.addressable_devices_indices_map((global_batch,))
  return np.unique(
    [np.arange(global_batch)[rows] for (rows,) in places.values()]
  )


def to_global(batch, sharding: NamedSharding, global_batch: int):
  """Makes global arrays from this host's rows, which host_rows names."""
  fed = host_rows(sharding, global_batch)

  def whole(part: np.ndarray) -> jax.Array:
    def of_device(index: tuple[slice, ...]) -> np.ndarray:
      wanted = np.arange(global_batch)[index[0]]
      return part[np.searchsorted(fed, wanted)]

    shape = (global_batch, *part.shape[1:])
    return jax.make_array_from_callback(shape, sharding, of_device)

  return jax.tree.map(whole, batch)


def put_rows(tree: Any, sharding: Any) -> Any:
  """Makes global arrays from numpy arrays [B, ...] that every host holds.

  sharding is one for all arrays, or a tree of them.
  """
  put = lambda x, place: jax.make_array_from_callback(
    x.shape, place, lambda index: x[index]
  )
  if isinstance(sharding, NamedSharding):
    return jax.tree.map(lambda x: put(x, sharding), tree)
  return jax.tree.map(put, tree, sharding)


def local_rows(tree: Any) -> Any:
  """Copies this process's rows of global arrays to numpy, in order.

  It is the inverse of to_global: host_rows names the rows. Arrays are sharded
  by rows alone, or replicated.
  """

  def local(x: jax.Array) -> np.ndarray:
    shards = {s.index[0].start or 0: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(shards[i]) for i in sorted(shards)])

  return jax.tree.map(local, tree)


def own_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
  """Returns the rows that this process alone is to write, in order.

  Processes that a tensor axis spans hold the same rows. They own them by turns.
  """
  holders: list[set[int]] = [set() for _ in range(rows)]
  for device, (index,) in sharding.devices_indices_map((rows,)).items():
    for row in range(rows)[index]:
      holders[row].add(device.process_index)
  owners = [sorted(of)[row % len(of)] for row, of in enumerate(holders)]
  return np.flatnonzero(np.array(owners) == jax.process_index())


def to_host(tree: Any) -> Any:
  """All-gathers global arrays to numpy; all hosts must call it."""
  return multihost_utils.process_allgather(tree, tiled=True)
