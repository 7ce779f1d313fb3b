"""TPU slices by the names that cloud users write, for compiling without a TPU.

This file imports JAX only inside tpu_slice(), so that a program can set
COMPILE_ONLY first.
"""

import dataclasses
import math
from typing import Any

from imagen_jax.parallel import peaks

# Variables to set in os.environ before JAX is imported. Without them libtpu
# looks for chips and for the cloud's metadata server, and writes to standard
# error and to log files. Only one program of a machine could use it at a time.
# It needs an accelerator type, which need not be the one to compile for.
COMPILE_ONLY = {
  "JAX_PLATFORMS": "cpu",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_LOG_DIR": "disabled",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}

# The supported shapes, by their number of chips. A host has 2x2x1 chips in
# three dimensions and 2x2 in two; the slices 1x1 and 2x4 have one host.
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
  """Describes a generation of TPUs.

  Attributes:
    shapes: the shapes of slices, by their number of chips.
    hbm_gib: GiB of a device that the compiler lets a program use.
    kind: the device_kind of its devices, a key of peaks.SPEEDS.
    pod: the most chips of one slice; more need several slices.
    count: how much a chip counts in a slice's name.
    devices: devices of a chip.
    config: libtpu's name of the chip's configuration; None for the default.
  """

  shapes: dict[int, tuple[int, ...]]
  hbm_gib: float
  kind: str
  pod: int
  count: int = 1
  devices: int = 1
  config: str | None = None

  @property
  def speed(self) -> peaks.Speed:
    """The published speeds of a device."""
    return peaks.SPEEDS[self.kind]


CHIPS = {
  # Without megacore, libtpu makes two devices of a v4 chip.
  "v4": Chip(SHAPES_3D, 30.75, "TPU v4", 4096, count=2, config="megacore"),
  "v5p": Chip(SHAPES_3D, 95.74, "TPU v5", 6144, count=2),
  "v5e": Chip(SHAPES_2D, 15.75, "TPU v5 lite", 256),
  "v6e": Chip(SHAPES_2D, 31.25, "TPU v6 lite", 256),
  "tpu7x": Chip(SHAPES_3D, 94.75, "TPU7x", 9216, count=2, devices=2),
}
ALIASES = {"v5litepod": "v5e"}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Describes the TPUs to compile for.

  Attributes:
    name: the name of one slice.
    num_slices: the number of slices.
    topology: of each slice, such as v4:4x8x8.
    devices: the devices of all slices.
    chips: the number of chips of all slices.
    devices_per_chip: the number of devices of a chip.
    hosts: the number of hosts of all slices.
    hbm_bytes: bytes of a device that a program may use.
    speed: the published speeds of a device.
    pod: the most chips of one slice of this generation.
  """

  name: str
  num_slices: int
  topology: str  # such as v4:4x8x8
  devices: tuple[Any, ...]
  chips: int
  devices_per_chip: int
  hosts: int
  hbm_bytes: int
  speed: peaks.Speed
  pod: int


def tpu_slice(name: str, num_slices: int = 1) -> Slice:
  """Returns the slice of a name: v4-512, v5p-128, v5e-16, v6e-8 or tpu7x-64.

  Args:
    name: a slice's name.
    num_slices: the number of slices; the devices of several have a slice_index.

  Raises:
    ValueError: there is no such slice, or libtpu is not installed.
  """
  generation, shape = shape_of(name)
  check_num_slices(num_slices)
  chip = CHIPS[generation]
  options: dict[str, Any] = {"num_slices": num_slices}
  if chip.config is not None:
    options["chip_config_name"] = chip.config
  if shape in ((1, 1), (2, 4)):  # one host, unlike 2x2 chips for a host
    options["chips_per_host_bounds"] = (*shape, 1)
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
    speed=chip.speed,
    pod=chip.pod,
  )


def shape_of(name: str) -> tuple[str, tuple[int, ...]]:
  """Returns the generation and shape of a slice: ("v4", (4, 8, 8)) for v4-512.

  A name counts TensorCores, two per chip. For v5e (or v5litepod) and v6e it
  counts chips. It may also be the shape itself, as in tpu7x-2x2x4.

  Raises:
    ValueError: there is no such slice.
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


def hosts_and_peak(name: str, num_slices: int = 1) -> tuple[int, float]:
  """Returns the hosts of all slices of a name, and their peak in FLOP/s.

  It needs no libtpu.

  Raises:
    ValueError: there is no such slice.
  """
  generation, shape = shape_of(name)
  check_num_slices(num_slices)
  chips, chip = math.prod(shape), CHIPS[generation]
  hosts = 1 if shape in ((1, 1), (2, 4)) else chips // 4
  peak = chips * chip.devices * chip.speed.tflops * 1e12
  return hosts * num_slices, peak * num_slices


def check_num_slices(num_slices: int) -> None:
  """Raises ValueError for fewer than one slice."""
  if num_slices < 1:
    raise ValueError(f"num_slices is {num_slices}, expected at least 1")


def _devices(topology: str, options: dict[str, Any]) -> tuple[Any, ...]:
  """Returns libtpu's devices of a topology; ValueError without libtpu."""
  import jax
  from jax.experimental import topologies

  try:
    return tuple(
      topologies.get_topology_desc(topology, "tpu", **options).devices
    )
  except jax.errors.JaxRuntimeError:
    raise  # unknown to libtpu: a mistake in the tables above
  except RuntimeError as error:
    raise ValueError(
      "compiling for TPUs needs libtpu, of the version that JAX names: "
      "pip install 'jax[tpu]'"
    ) from error
