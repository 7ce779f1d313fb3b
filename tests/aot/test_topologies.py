"""TPU slices: their names, and what libtpu makes of them without a TPU."""

import json
import math
import os
import subprocess
import sys

import pytest
from jax.experimental.pallas import tpu as pallas

from imagen_jax.aot import topologies

PREAMBLE = """
import json, os, sys
from imagen_jax.aot.topologies import COMPILE_ONLY, tpu_slice
assert "jax" not in sys.modules
os.environ.update(COMPILE_ONLY)
"""


def run(program):
  """What a program prints as JSON, started as a verb sets its environment.

  In a process of its own, for libtpu stays once it is loaded. It must print
  nothing on standard error, and must find no program in JAX's cache.
  """
  ours = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
  ours += tuple(topologies.COMPILE_ONLY)
  done = subprocess.run(
    [sys.executable, "-c", PREAMBLE + program],
    env={k: v for k, v in os.environ.items() if k not in ours},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr == ""
  return json.loads(done.stdout)


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("v4-8", ("v4", (2, 2, 1))),
    ("v4-512", ("v4", (4, 8, 8))),
    ("v5p-2048", ("v5p", (8, 8, 16))),
    ("v5e-1", ("v5e", (1, 1))),
    ("v5litepod-16", ("v5e", (4, 4))),
    ("v6e-256", ("v6e", (16, 16))),
    ("tpu7x-64", ("tpu7x", (2, 4, 4))),
    ("tpu7x-2x2x4", ("tpu7x", (2, 2, 4))),
    ("v5litepod-4x4", ("v5e", (4, 4))),
  ],
)
def test_a_name_stands_for_a_shape(name, expected):
  assert topologies.shape_of(name) == expected


@pytest.mark.parametrize("chip", topologies.CHIPS.values())
def test_shapes_have_the_chips_they_are_filed_under(chip):
  assert {math.prod(s): s for s in chip.shapes.values()} == chip.shapes


@pytest.mark.parametrize("kind", topologies.CHIPS)
def test_peaks_are_those_that_jax_knows(kind):
  version = pallas.ChipVersion(kind.removeprefix("tpu"))
  core = pallas.get_tpu_info_for_chip(version, 1).bf16_ops_per_second
  chip = topologies.CHIPS[kind]
  cores = 2 if kind in ("v4", "v5p", "tpu7x") else 1
  peak = chip.speed.tflops * 1e12 * chip.devices
  assert peak == pytest.approx(cores * core, rel=0.005)


@pytest.mark.parametrize("name", ["v3-8", "8", "", "V4-8", "gpu"])
def test_an_unknown_generation_is_refused(name):
  with pytest.raises(
    ValueError,
    match=f"^'{name}' is no TPU slice, expected one of v4-N, v5p-N, v5e-N, "
    "v6e-N, tpu7x-N, v5litepod-N, such as v4-512$",
  ):
    topologies.tpu_slice(name)


@pytest.mark.parametrize("size", ["", "-2", "-24", "-08", "-4-4", "-2x2x1"])
def test_an_unknown_size_is_refused(size):
  with pytest.raises(
    ValueError,
    match=f"^'v5litepod{size}' is no TPU slice, expected v5litepod-N with N "
    "one of 1, 4, 8, 16, 32, 64, 128, 256, 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, "
    "8x16, 16x16$",
  ):
    topologies.tpu_slice(f"v5litepod{size}")


def test_no_slices_are_refused():
  with pytest.raises(
    ValueError, match="^num_slices is 0, expected at least 1$"
  ):
    topologies.tpu_slice("v5e-8", 0)


def test_libtpu_that_is_not_installed_is_told(monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  with pytest.raises(
    ValueError,
    match="^compiling for TPUs needs libtpu, of the version that JAX names: "
    r"pip install 'jax\[tpu\]'$",
  ):
    topologies.tpu_slice("v5e-8")


ALL = """
from imagen_jax.aot.topologies import CHIPS
found = {}
for kind, chip in CHIPS.items():
  for chips in chip.shapes:
    s = tpu_slice(f"{kind}-{chips * chip.count}")
    first = s.devices[0]
    found[s.name] = [
      len(s.devices), s.chips, s.hosts, first.device_kind, first.platform
    ]
print(json.dumps(found))
"""
KINDS = {
  "v4": "TPU v4",
  "v5p": "TPU v5",
  "v5e": "TPU v5 lite",
  "v6e": "TPU v6 lite",
  "tpu7x": "TPU7x",
}


def test_libtpu_knows_every_slice():
  pytest.importorskip("libtpu")
  expected = {}
  for kind, chip in topologies.CHIPS.items():
    for chips in chip.shapes:
      hosts = 1 if chips == 8 and chip.count == 1 else max(chips // 4, 1)
      devices = chips * (2 if kind == "tpu7x" else 1)
      name = f"{kind}-{chips * chip.count}"
      expected[name] = [devices, chips, hosts, KINDS[kind], "tpu"]
  assert run(ALL) == expected


TWO = """
s = tpu_slice("v4-16", num_slices=2)
index = [device.slice_index for device in s.devices]
units = [s.devices_per_chip, s.hbm_bytes, s.speed.tflops]
print(json.dumps([s.num_slices, s.chips, s.hosts, s.topology, units, index]))
"""


def test_devices_know_their_slice():
  pytest.importorskip("libtpu")
  units = [1, 30.75 * 2**30, 275]
  index = [0] * 8 + [1] * 8
  assert run(TWO) == [2, 16, 4, "v4:2x2x2", units, index]


BESIDE = """
import subprocess
assert tpu_slice("v5e-1").hosts == 1
code = "from imagen_jax.aot import topologies as t; t.tpu_slice('v5e-4')"
print(json.dumps(subprocess.call([sys.executable, "-c", code])))
"""


def test_two_programs_may_compile_at_once():
  pytest.importorskip("libtpu")
  assert run(BESIDE) == 0


COMPILE = """
import re
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
  Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
)
from imagen_jax.aot.collectives import collectives

def abstract(shape, dtype, sharding):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

def limit(name):
  device = tpu_slice(name).devices[0]
  huge = abstract((2**17, 2**20), jnp.int8, SingleDeviceSharding(device))
  try:
    jax.jit(jnp.negative).lower(huge).compile()
  except jax.errors.JaxRuntimeError as error:
    return re.search(r"available HBM \\(([\\d.]+)G\\)", str(error))[1]

def loss(kernels, x):
  layer = lambda x, w: (jnp.tanh(x @ w.astype(jnp.bfloat16)), None)
  y, _ = jax.lax.scan(layer, x.astype(jnp.bfloat16), kernels)
  return (y.astype(jnp.float32) ** 2).mean()

mesh = Mesh(np.asarray(tpu_slice("v5e-4").devices), ("data",))
rows = NamedSharding(mesh, PartitionSpec("data"))
columns = NamedSharding(mesh, PartitionSpec(None, None, "data"))
kernels = abstract((3, 256, 256), jnp.float32, columns)
x = abstract((64, 256), jnp.float32, rows)
gradient = jax.jit(jax.value_and_grad(loss), out_shardings=(None, columns))
compiled = gradient.lower(kernels, x).compile()
traffic = collectives(compiled.as_text())
traffic = {k: [t.count, t.bytes, t.at_least] for k, t in traffic.items()}
names = "v4-8", "v5p-8", "v5e-4", "v6e-4", "tpu7x-8"
limits = {name.split("-")[0]: limit(name) for name in names}
print(json.dumps([traffic, limits]))
"""


@pytest.mark.slow
def test_programs_compile_for_tpus():
  pytest.importorskip("libtpu")
  traffic, limits = run(COMPILE)
  count, size, _ = traffic.pop("all-gather")
  layer = 256 * 256 * 2  # bytes, in bfloat16
  assert (count, size) == (3 + 3, (3 + 3) * layer)
  assert traffic.keys() <= {"all-reduce", "reduce-scatter"}
  assert sum(size for _, size, _ in traffic.values()) == 3 * layer + 4
  assert limits == {
    kind: f"{topologies.CHIPS[kind].hbm_gib:.2f}" for kind in topologies.CHIPS
  }


THRESHOLD = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from imagen_jax.aot.collectives import collectives
from imagen_jax.diffusion.guidance import dynamic_threshold

devices = np.asarray(tpu_slice("v5e-4").devices)
rows = NamedSharding(Mesh(devices, ("data",)), PartitionSpec("data"))
x = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32, sharding=rows)
hlo = jax.jit(dynamic_threshold).lower(x).compile().as_text()
print(json.dumps(["sort" in hlo, "while" in hlo, list(collectives(hlo))]))
"""


@pytest.mark.slow
def test_dynamic_threshold_on_tpus_neither_sorts_nor_communicates():
  pytest.importorskip("libtpu")
  assert run(THRESHOLD) == [False, True, []]
