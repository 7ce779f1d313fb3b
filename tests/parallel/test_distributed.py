"""How a process finds its job; that it does is in verbs/test_two_processes."""

import jax
import pytest

from imagen_jax.parallel import distributed

GIVEN = {
  "JAX_COORDINATOR_ADDRESS": "host:1234",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "3",
}


ALIVE = {"heartbeat_timeout_seconds": 100}


@pytest.fixture
def started(monkeypatch):
  """Calls of jax.distributed.initialize, none of which does anything."""
  calls = []
  note = lambda *args, **kwargs: calls.append((args, kwargs))
  monkeypatch.setattr(jax.distributed, "initialize", note)
  names = (*distributed.EXPLICIT, *distributed.SRUN, *distributed.TPU_HOSTS)
  names += ("MEGASCALE_NUM_SLICES", "JAX_COORDINATOR_BIND_ADDRESS")
  for name in (*names, "JAX_PLATFORMS"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
  return calls


def setenv(monkeypatch, **variables: str) -> None:
  for name, value in variables.items():
    monkeypatch.setenv(name, value)


def test_a_process_by_itself_starts_nothing(started):
  assert distributed.start() == "one process"
  assert started == []


def test_a_job_that_is_named(started, monkeypatch):
  setenv(monkeypatch, **GIVEN)
  assert distributed.start(heartbeat=7) == "process 3 of 4 at host:1234"
  alive = {"heartbeat_timeout_seconds": 7, "coordinator_bind_address": None}
  assert started == [(("host:1234", 4, 3), alive)]


@pytest.mark.parametrize(
  ("address", "given", "bound"),
  [
    ("localhost:1", None, "localhost:1"),
    ("127.0.0.1:1", None, "127.0.0.1:1"),
    ("[::1]:1", None, "[::1]:1"),
    ("host:1", None, None),
    ("10.0.0.2:1", None, None),
    ("localhost:1", "0.0.0.0:2", "0.0.0.0:2"),
    ("host:1", "10.0.0.2:1", "10.0.0.2:1"),
  ],
)
def test_a_job_of_one_machine_listens_there_only(
  started, monkeypatch, address, given, bound
):
  setenv(monkeypatch, **GIVEN | {"JAX_COORDINATOR_ADDRESS": address})
  if given:
    setenv(monkeypatch, JAX_COORDINATOR_BIND_ADDRESS=given)
  distributed.start()
  assert started[0][1]["coordinator_bind_address"] == bound


def test_off_is_off(started, monkeypatch):
  setenv(monkeypatch, **GIVEN)
  assert distributed.start("off") == "one process"
  assert started == []


def test_slurm_only_under_srun(started, monkeypatch):
  setenv(monkeypatch, SLURM_JOB_ID="7")  # in the batch script: no task yet
  assert distributed.start() == "one process"
  setenv(monkeypatch, **dict.fromkeys(distributed.SRUN, "0"))
  assert "SLURM" in distributed.start()
  by_slurm = {"cluster_detection_method": "slurm", **ALIVE}
  assert started == [((), by_slurm)]


def test_a_tpu_host_where_jax_will_use_it(started, monkeypatch):
  chips = {"/dev/accel[0-9]*": ["/dev/accel0"]}
  monkeypatch.setattr(distributed.glob, "glob", lambda p: chips.get(p, []))
  monkeypatch.setattr(
    distributed.importlib.util, "find_spec", lambda name: object()
  )
  setenv(monkeypatch, JAX_PLATFORMS="cpu")
  assert distributed.start() == "one process"
  setenv(monkeypatch, JAX_PLATFORMS="tpu,cpu")
  assert "of a TPU" in distributed.start()
  assert started == [((), ALIVE)]


@pytest.mark.parametrize(
  "named,alone",
  [
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, True),
    ({"TPU_PROCESS_ADDRESSES": "local"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, False),
    ({"TPU_WORKER_HOSTNAMES": ""}, False),  # a server will answer
  ],
)
def test_a_notebooks_only_tpu_host_joins_none(
  started, monkeypatch, named, alone
):
  monkeypatch.setattr(distributed, "has_tpu", lambda: True)
  setenv(monkeypatch, **named)
  assert (distributed.start() == "one process") == alone
  assert started == ([] if alone else [((), ALIVE)])


def test_a_tpu_host_that_finds_no_others_says_what_to_do(started, monkeypatch):
  def fail(*_, **__):
    raise ConnectionError("metadata.google.internal: no such host")

  monkeypatch.setattr(distributed, "has_tpu", lambda: True)
  monkeypatch.setattr(jax.distributed, "initialize", fail)
  with pytest.raises(ValueError, match="--distributed=off.*no such host"):
    distributed.start()


def test_a_failure_is_not_swallowed(started, monkeypatch):
  def fail(*_, **__):
    raise RuntimeError("no coordinator")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  setenv(monkeypatch, **GIVEN)
  with pytest.raises(RuntimeError, match="no coordinator"):
    distributed.start()


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"JAX_PROCESS_ID": ""}, "^JAX_PROCESS_ID is not set, expected all of"),
    ({"JAX_NUM_PROCESSES": ""}, "^JAX_NUM_PROCESSES is not set"),
    ({"JAX_COORDINATOR_ADDRESS": "host"}, "'host', expected host:port$"),
    ({"JAX_NUM_PROCESSES": "two"}, "'two', expected a number$"),
    ({"JAX_PROCESS_ID": "-1"}, "'-1', expected a number$"),
    ({"JAX_PROCESS_ID": "4"}, "^JAX_PROCESS_ID is 4, expected less than"),
  ],
)
def test_variables_that_say_too_little(started, monkeypatch, changed, message):
  setenv(monkeypatch, **(GIVEN | changed))
  with pytest.raises(ValueError, match=message):
    distributed.start()
  assert started == []
