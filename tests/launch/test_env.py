"""launch/env/: flags that exist, and yours after them."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from imagen_jax.aot.topologies import COMPILE_ONLY

ENV = pathlib.Path(__file__).parents[2] / "launch" / "env"
NAMES = sorted(path.stem for path in ENV.glob("*.sh"))
VARIABLES = (
  "LIBTPU_INIT_ARGS",
  "XLA_FLAGS",
  "XLA_PYTHON_CLIENT_MEM_FRACTION",
)
# Starts libtpu, which reads its flags, where there is no TPU.
START_LIBTPU = """
from jax.experimental import topologies
print(topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1"))
"""


def sourced(name: str, **env: str) -> dict[str, str]:
  """What a file leaves in VARIABLES, sourced by a strict shell."""
  script = f'set -eu; . "$1"; env | grep -E "^({"|".join(VARIABLES)})=" || :'
  run = subprocess.run(
    ["sh", "-c", script, "sh", ENV / f"{name}.sh"],
    env={"PATH": os.environ["PATH"], **env},
    capture_output=True,
    text=True,
    check=True,
  )
  assert run.stderr == ""
  return dict(line.split("=", 1) for line in run.stdout.splitlines())


def start(code: str, **env: str) -> subprocess.CompletedProcess:
  kept = {k: v for k, v in os.environ.items() if k not in VARIABLES}
  return subprocess.run(
    [sys.executable, "-c", code],
    env=kept | env,
    capture_output=True,
    text=True,
  )


def test_every_generation_has_a_file():
  assert NAMES == ["dcn", "gpu", "tpu7x", "v4", "v5e", "v5p", "v6e"]


@pytest.mark.parametrize("name", NAMES)
def test_yours_win(name):
  ours = sourced(name)
  yours = sourced(name, LIBTPU_INIT_ARGS="--l", XLA_FLAGS="--x")
  for variable, value in (("LIBTPU_INIT_ARGS", "--l"), ("XLA_FLAGS", "--x")):
    mine = ours.get(variable, "").split()
    assert yours[variable].split() == [*mine, value]
  fraction = sourced("gpu", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
  assert fraction["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_has_its_reason_above_it(name):
  lines = (ENV / f"{name}.sh").read_text().splitlines()
  for line, above in zip(lines[1:], lines):
    if re.match(r"(flags|export [A-Z_]+)=.*--xla|export XLA_PY", line):
      assert above.startswith("# "), line


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu"
)
def test_libtpu_knows_the_flags():
  flags = {
    f for name in NAMES for f in sourced(name).get(VARIABLES[0], "").split()
  }
  assert flags
  known = start(START_LIBTPU, LIBTPU_INIT_ARGS=" ".join(flags), **COMPILE_ONLY)
  assert known.returncode == 0, known.stderr
  unknown = start(START_LIBTPU, LIBTPU_INIT_ARGS="--xla_no", **COMPILE_ONLY)
  assert unknown.returncode != 0
  assert "xla_no" in unknown.stderr


def test_xla_knows_the_flags():
  flags = sourced("gpu")["XLA_FLAGS"]
  code = "import jax; print(jax.devices())"
  known = start(code, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
  assert known.returncode == 0, known.stderr
  unknown = start(code, XLA_FLAGS="--xla_no=1", JAX_PLATFORMS="cpu")
  assert unknown.returncode != 0
  assert "xla_no" in unknown.stderr
