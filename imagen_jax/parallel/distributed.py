"""Joins a process to the job that it is a part of: pod, cluster or localhost.

Every failure is an error. A process that went on alone after one would train
by itself, into the folder that the others write to.
"""

import glob
import importlib.util
import os
from typing import Any

import jax

from imagen_jax.files import reason

# What names a job outright: where its first process listens, how many there
# are, and which this is. launch/local.sh sets them.
EXPLICIT = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
SRUN = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
MODES = ("auto", "off")
# Either names a TPU slice's hosts, where not a metadata server does.
TPU_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


def start(mode: str = "auto", *, heartbeat: int = 100) -> str:
  """Joins the job that the environment tells of; returns what that was.

  To be called before anything else uses JAX. In this order: the variables of
  EXPLICIT; SLURM's, under srun; a TPU's host, one of many. Anything else, and
  mode "off", is a process by itself. Waits for all processes. One that gives no
  sign of life for `heartbeat` seconds ends all the others. ValueError for
  variables that say too little, and if a TPU's host does not find the others.
  """
  alive = {"heartbeat_timeout_seconds": heartbeat}
  if mode == "off":
    return "one process"
  if any(name in os.environ for name in EXPLICIT):
    address, count, index = explicit()
    jax.distributed.initialize(
      address, count, index,
      coordinator_bind_address=bind_address(address), **alive,
    )  # fmt: skip
    return f"process {index} of {count} at {address}"
  if all(name in os.environ for name in SRUN):
    jax.distributed.initialize(cluster_detection_method="slurm", **alive)
    return f"process {jax.process_index()} of {jax.process_count()} by SLURM"
  if has_tpu() and not is_only_host():
    join_tpu(alive)
    return f"host {jax.process_index()} of {jax.process_count()} of a TPU"
  return "one process"


def join_tpu(settings: dict[str, Any]) -> None:
  """Finds the other hosts of a TPU by what Google tells of them."""
  try:
    jax.distributed.initialize(**settings)
  except Exception as error:  # requests' too, by which JAX asks
    raise ValueError(
      "the other hosts of this TPU are not found, --distributed=off if there "
      f"are none: {reason(error)}"
    ) from error


def explicit() -> tuple[str, int, int]:
  """(address, processes, index) of EXPLICIT; ValueError for anything amiss."""
  for name in EXPLICIT:
    if not os.environ.get(name):
      raise ValueError(
        f"{name} is not set, expected all of {', '.join(EXPLICIT)}"
      )
  address, *numbers = (os.environ[name] for name in EXPLICIT)
  if not address.rpartition(":")[2].isdecimal():
    raise ValueError(f"{EXPLICIT[0]} is {address!r}, expected host:port")
  for name, number in zip(EXPLICIT[1:], numbers, strict=True):
    if not number.isdecimal():
      raise ValueError(f"{name} is {number!r}, expected a number")
  count, index = map(int, numbers)
  if not index < count:
    raise ValueError(
      f"{EXPLICIT[2]} is {index}, expected less than {EXPLICIT[1]} {count}"
    )
  return address, count, index


def bind_address(coordinator: str) -> str | None:
  """Returns where the coordinator listens; None leaves it to JAX.

  JAX has it listen on all interfaces, and it asks nobody who they are. A job of
  one machine listens there only. JAX_COORDINATOR_BIND_ADDRESS comes first.
  """
  host = coordinator.rpartition(":")[0]
  alone = host in ("localhost", "127.0.0.1", "[::1]")
  given = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
  return given or (coordinator if alone else None)


def is_only_host() -> bool:
  """Whether the environment names this TPU's hosts, and that is one.

  As in notebooks that rent out one host, where there is no metadata server.
  """
  if int(os.environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
    return False
  named = [os.environ[name] for name in TPU_HOSTS if os.environ.get(name)]
  return bool(named) and all("," not in hosts for hosts in named)


def has_tpu() -> bool:
  """Whether JAX will use TPU chips of this machine."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return False
  if importlib.util.find_spec("libtpu") is None:
    return False
  return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))
