"""The device mesh, and where a batch lives on it."""

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
  """How many devices along each axis; -1 is all that the others leave.

  data and fsdp both spread the batch. Along data every device has the whole
  weights, along fsdp a part of them, to be gathered for use; along tensor a
  part of the channels or heads, for good. Several slices of a pod, which a
  slower network joins, are further devices along data.
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
    """Devices along each axis, count in all; ValueError if that cannot be."""
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
  """The mesh over all devices (or those given), neighbours along tensor."""
  devices = jax.devices() if devices is None else list(devices)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  sizes = shape.sizes(len(devices), slices)
  # An axis may be a part of one of the torus's: 64 chips of one of 16x16.
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
  """Over how many devices the rows of a batch are spread."""
  return math.prod(mesh.shape[name] for name in BATCH_AXES)


def batch_sharding(
  mesh: Mesh, global_batch: int, parts: int = 1
) -> NamedSharding:
  """Rows of a batch spread over the mesh; ValueError if they do not divide.

  parts: in how many parts, one after the other, the batch is computed.
  """
  ways = row_ways(mesh)
  if global_batch % (ways * parts):
    times = f" times accumulate {parts}" if parts > 1 else ""
    raise ValueError(
      f"batch_size is {global_batch}, expected a multiple of the {ways} "
      f"devices along {' and '.join(BATCH_AXES)}{times}"
    )
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rows_sharding(mesh: Mesh, rows: int) -> NamedSharding:
  """The same where they divide; where not, every device has all rows."""
  ways = row_ways(mesh)
  return replicated(mesh) if rows % ways else batch_sharding(mesh, rows)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def host_rows(sharding: NamedSharding, global_batch: int) -> np.ndarray:
  """The rows of a batch that this host feeds, in order: those of its devices.

  They are in pieces, for the four chips of a TPU's host are neighbours along
  two axes of the torus; and hosts that a tensor axis spans feed the same ones.
  """
  places = sharding.addressable_devices_indices_map((global_batch,))
  return np.unique(
    [np.arange(global_batch)[rows] for (rows,) in places.values()]
  )


def to_global(batch, sharding: NamedSharding, global_batch: int):
  """Numpy arrays of the rows of host_rows -> global ones of global_batch."""
  fed = host_rows(sharding, global_batch)

  def whole(part: np.ndarray) -> jax.Array:
    def of_device(index: tuple[slice, ...]) -> np.ndarray:
      wanted = np.arange(global_batch)[index[0]]
      return part[np.searchsorted(fed, wanted)]

    shape = (global_batch, *part.shape[1:])
    return jax.make_array_from_callback(shape, sharding, of_device)

  return jax.tree.map(whole, batch)


def put_rows(tree: Any, sharding: NamedSharding) -> Any:
  """Numpy arrays [B, ...] that every host has whole -> global arrays."""
  put = lambda x: jax.make_array_from_callback(
    x.shape, sharding, lambda index: x[index]
  )
  return jax.tree.map(put, tree)


def to_host(tree: Any) -> Any:
  """Global arrays -> numpy, whole on every host; all hosts must call it."""
  return multihost_utils.process_allgather(tree, tiled=True)
