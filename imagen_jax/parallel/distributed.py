"""Start of a process in its job: on a pod, a cluster or localhost.

Every failure is an error. A process that continued alone would train by itself
and write to the folder that the other processes write to.
"""

import glob
import importlib.util
import os
from typing import Any

import jax

from imagen_jax.files import reason

# The variables that describe a job: the address where its first process
# listens, the number of processes and this one's index. launch/local.sh sets
# them.
EXPLICIT = (
  "JAX_COORDINATOR_ADDRESS",
  "JAX_NUM_PROCESSES",
  "JAX_PROCESS_ID",
)
SRUN = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
MODES = ("auto", "off")
# Each names a TPU slice's hosts where there is no metadata server.
TPU_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


def start(mode: str = "auto", *, heartbeat: int = 100) -> str:
  """Joins the job that the environment describes.

  Call it before anything else uses JAX. It takes the first that applies: the
  variables of EXPLICIT; SLURM's variables, under srun; a host of a TPU of many
  hosts. Otherwise, or with mode "off", the process runs by itself. It waits for
  all processes.

  Args:
    mode: "auto" or "off".
    heartbeat: seconds without a sign of life of one process until all other
      processes end.

  Returns:
    The process's place in the job, to be logged.

  Raises:
    ValueError: variables are missing or wrong, or a TPU's host does not find
      the other hosts.
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
  """Finds the other hosts of a TPU with Google's metadata."""
  try:
    jax.distributed.initialize(**settings)
  except Exception as error:  # also requests' errors, which JAX uses
    raise ValueError(
      "the other hosts of this TPU are not found, --distributed=off if there "
      f"are none: {reason(error)}"
    ) from error


def explicit() -> tuple[str, int, int]:
  """Returns (address, processes, index) of EXPLICIT; ValueError if wrong."""
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
  """Returns the address where the coordinator listens; None leaves it to JAX.

  By default the coordinator listens on all interfaces without authentication. A
  job of one machine listens on that machine only.
  JAX_COORDINATOR_BIND_ADDRESS takes precedence.
  """
  host = coordinator.rpartition(":")[0]
  alone = host in ("localhost", "127.0.0.1", "[::1]")
  given = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
  return given or (coordinator if alone else None)


def is_only_host() -> bool:
  """Returns True if the environment names one host as all of this TPU's hosts.

  Notebooks that rent out one host do so; they have no metadata server.
  """
  if int(os.environ.get("MEGASCALE_NUM_SLICES") or 1) > 1:
    return False
  named = [os.environ[name] for name in TPU_HOSTS if os.environ.get(name)]
  return bool(named) and all("," not in hosts for hosts in named)


def has_tpu() -> bool:
  """Returns True if JAX will use TPU chips of this machine."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return False
  if importlib.util.find_spec("libtpu") is None:
    return False
  return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))
