"""Sets the tests' machine, before anything imports JAX: a CPU as 8 devices."""

import os
import sys

from absl import flags

assert "jax" not in sys.modules, "a pytest plugin imported jax too early"

DEVICES = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's flags


def pytest_configure(config):
  """Keeps compiled programs from one run to the next, in pytest's cache.

  JAX's key holds the program, the device and its own version, and what it
  cannot read it compiles again. `pytest --cache-clear` empties it.
  """
  cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
  if cache is not None:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache.mkdir("jax"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
