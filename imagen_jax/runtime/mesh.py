"""The device mesh and where a batch and a state live on it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """One axis, "data", over all devices (or those given)."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), ("data",))


def batch_sharding(mesh: Mesh, global_batch: int) -> NamedSharding:
  """Rows of a batch spread over the mesh; ValueError if they do not divide."""
  if global_batch % mesh.size:
    raise ValueError(
      f"batch_size is {global_batch}, expected a multiple of the "
      f"{mesh.size} devices"
    )
  return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def host_rows(sharding: NamedSharding, global_batch: int) -> tuple[int, int]:
  """(index, count): which of how many equal parts of a batch this host feeds.

  Read off the sharding and not off the process index, which are different
  things once an axis of the mesh spans hosts.
  """
  places = sharding.addressable_devices_indices_map((global_batch,))
  spans = sorted({s[0].indices(global_batch)[:2] for s in places.values()})
  rows = sum(stop - start for start, stop in spans)
  first, last = spans[0][0], spans[-1][1]
  assert last - first == rows and first % rows == 0, f"rows in pieces: {spans}"
  return first // rows, global_batch // rows


def to_global(batch, sharding: NamedSharding, global_batch: int):
  """This host's numpy rows -> global arrays of global_batch rows."""
  return jax.tree.map(
    lambda a: jax.make_array_from_process_local_data(
      sharding, a, (global_batch, *a.shape[1:])
    ),
    batch,
  )
