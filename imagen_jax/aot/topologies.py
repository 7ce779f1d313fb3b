"""TPU slices by the names cloud users write, to compile for without a TPU.

This file imports JAX only inside tpu_slice(), so that a program can set
COMPILE_ONLY first.
"""

import dataclasses
from typing import Any

from imagen_jax.parallel import peaks

# For os.environ before JAX is imported; without it libtpu looks for chips and
# for the cloud's metadata server, writes to standard error and to log files,
# and is there for one program of a machine at a time. It wants some
# accelerator type, which need not be the one that is compiled for.
COMPILE_ONLY = {
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_LOG_DIR": "disabled",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}

# The shapes that are offered, by their number of chips. In three dimensions
# a host has 2x2x1 chips; in two it has 2x2, and all of 1x1 and of 2x4.
SHAPES_2D = {
  1: (1, 1),
  4: (2, 2),
  8: (2, 4),
  16: (4, 4),
  32: (4, 8),
  64: (8, 8),
  128: (8, 16),
  256: (16, 16),
}
SHAPES_3D = {
  4: (2, 2, 1),
  8: (2, 2, 2),
  16: (2, 2, 4),
  32: (2, 4, 4),
  64: (4, 4, 4),
  128: (4, 4, 8),
  256: (4, 8, 8),
  512: (8, 8, 8),
  1024: (8, 8, 16),
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation of TPUs; hbm_gib and peak_tflops are those of a device.

  count: by how much a chip counts in the name of a slice. hbm_gib: what the
  compiler lets a program use. peak_tflops: in bfloat16.
  """

  shapes: dict[int, tuple[int, ...]]
  hbm_gib: float
  peak_tflops: float
  count: int = 1
  devices: int = 1
  config: str | None = None


PEAK = peaks.PEAK_TFLOPS
CHIPS = {
  # As a megacore, or libtpu makes two devices of a v4 chip.
  "v4": Chip(SHAPES_3D, 30.75, PEAK["TPU v4"], count=2, config="megacore"),
  "v5p": Chip(SHAPES_3D, 95.73, PEAK["TPU v5"], count=2),
  "v5e": Chip(SHAPES_2D, 15.75, PEAK["TPU v5 lite"]),
  "v6e": Chip(SHAPES_2D, 31.24, PEAK["TPU v6 lite"]),
  "tpu7x": Chip(SHAPES_3D, 94.74, PEAK["TPU7x"], count=2, devices=2),
}
ALIASES = {"v5litepod": "v5e"}


@dataclasses.dataclass(frozen=True)
class Slice:
  """TPUs to compile for: num_slices times those that `name` asks for.

  chips, hosts and devices are those of all slices. hbm_bytes, which a program
  may use, and peak_flops, bfloat16 operations per second, are of one device.
  """

  name: str
  num_slices: int
  topology: str  # of each slice, such as v4:4x8x8
  devices: tuple[Any, ...]
  chips: int
  devices_per_chip: int
  hosts: int
  hbm_bytes: int
  peak_flops: float


def tpu_slice(name: str, num_slices: int = 1) -> Slice:
  """The slice of a name such as v4-512, v5p-128, v5e-16, v6e-8 or tpu7x-64.

  The devices of several slices have a slice_index. ValueError if there is no
  such slice, or no libtpu to compile with.
  """
  generation, shape = shape_of(name)
  if num_slices < 1:
    raise ValueError(f"num_slices is {num_slices}, expected at least 1")
  chip = CHIPS[generation]
  options: dict[str, Any] = {"num_slices": num_slices}
  if chip.config is not None:
    options["chip_config_name"] = chip.config
  if shape == (2, 4):
    options["chips_per_host_bounds"] = (2, 4, 1)
  topology = f"{generation}:{'x'.join(map(str, shape))}"
  devices = _devices(topology, options)
  return Slice(
    name=name,
    num_slices=num_slices,
    topology=topology,
    devices=devices,
    chips=len(devices) // chip.devices,
    devices_per_chip=chip.devices,
    hosts=len({device.process_index for device in devices}),
    hbm_bytes=int(chip.hbm_gib * 2**30),
    peak_flops=chip.peak_tflops * 1e12,
  )


def shape_of(name: str) -> tuple[str, tuple[int, ...]]:
  """("v4", (4, 8, 8)) for v4-512; ValueError if there is no such slice.

  A name counts TensorCores, two to a chip, but for v5e (or v5litepod) and v6e,
  where it counts chips; or it has the shape itself, as in tpu7x-2x2x4.
  """
  kind, _, size = name.partition("-")
  generation = ALIASES.get(kind, kind)
  if generation not in CHIPS:
    kinds = ", ".join(f"{kind}-N" for kind in (*CHIPS, *ALIASES))
    raise ValueError(
      f"{name!r} is no TPU slice, expected one of {kinds}, such as v4-512"
    )
  chip = CHIPS[generation]
  sizes = {str(chips * chip.count): chips for chips in chip.shapes}
  sizes |= {"x".join(map(str, s)): n for n, s in chip.shapes.items()}
  if size not in sizes:
    raise ValueError(
      f"{name!r} is no TPU slice, expected {kind}-N with N one of "
      f"{', '.join(sizes)}"
    )
  return generation, chip.shapes[sizes[size]]


def _devices(topology: str, options: dict[str, Any]) -> tuple[Any, ...]:
  """libtpu's devices of a topology; ValueError if it is not installed."""
  import jax
  from jax.experimental import topologies

  try:
    return tuple(
      topologies.get_topology_desc(topology, "tpu", **options).devices
    )
  except jax.errors.JaxRuntimeError:
    raise  # libtpu knows no such topology: a mistake of the tables above
  except RuntimeError as error:
    raise ValueError(
      "compiling for TPUs needs the libtpu package: pip install libtpu"
    ) from error
