"""Compares the roofline's prediction of a training step with its measured time.

  python benchmarks/roofline.py [--config=configs/shapes16.py] [--batch=32]

Measures two speeds of the device at hand: matrix products in the net's dtype,
and copies in its memory. Predicts one training step from these speeds, by the
same counts of FLOPs and bytes as `imagen_jax.compile`, and measures the step.
Prints predicted and measured seconds, and their ratio.

With --published, a device of imagen_jax/parallel/peaks.py is predicted from its
published speeds and the share of peak that `imagen_jax.compile` assumes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax import build
from imagen_jax.aot.hbm import hbm_bytes
from imagen_jax.aot.roofline import Work, predicted
from imagen_jax.build import configs
from imagen_jax.parallel.flops import count_flops
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.peaks import SPEEDS, Speed
from imagen_jax.training.setup import Setup, set_up

REPEATS = 7


def seconds_of(run: Callable[[], Any]) -> float:
  """Returns the median seconds of a call, after a first that compiles."""
  jax.block_until_ready(run())
  times = []
  for _ in range(REPEATS):
    begun = time.monotonic()
    jax.block_until_ready(run())
    times.append(time.monotonic() - begun)
  return statistics.median(times)


def measured_speed(dtype: Any) -> Speed:
  """Measures products of 2048 x 2048 and copies of 256 MiB on one device."""
  size, count = 2048, 2**26
  square = jnp.ones((size, size), dtype)
  product = jax.jit(jnp.matmul)
  flops = 2 * size**3 / seconds_of(lambda: product(square, square))
  line = jnp.ones(count, jnp.float32)
  negate = jax.jit(jnp.negative)
  moved = 2 * 4 * count / seconds_of(lambda: negate(line))
  return Speed(flops / 1e12, moved / 1e9, links_gb=1, network_gb=1)


def work_of(setup: Setup, compiled: jax.stages.Compiled) -> Work:
  """Counts the work of a training step on one device."""
  with jax.set_mesh(setup.devices):
    flops = count_flops(setup.step, setup.state, setup.text, setup.batch)
  return Work(flops, hbm_bytes(compiled.as_text()))


def zeros(tree: Any) -> Any:
  """Makes arrays of the given shapes."""
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def step_seconds(setup: Setup, compiled: jax.stages.Compiled) -> float:
  """Measures a training step on arrays of zeros."""
  state = setup.initialise()
  text, batch = zeros(setup.text), zeros(setup.batch)

  def step():
    nonlocal state
    state, metrics = compiled(state, text, batch)
    return metrics

  return seconds_of(step)


def main() -> None:
  """Prints speeds, work, the prediction, the measurement and their ratio."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/shapes16.py")
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--published", action="store_true")
  args = parser.parse_args()
  config = configs.read_config(args.config)
  config.data.batch_size = args.batch
  run = build.run(config)
  device = jax.devices()[0]
  setup = set_up(run, make_mesh(MeshShape(), [device]))
  with jax.set_mesh(setup.devices):
    compiled = setup.compile(setup.state, setup.text, setup.batch)
  work = work_of(setup, compiled)
  if args.published:
    speed = SPEEDS[device.device_kind]
    step = predicted(work.seconds(speed))
  else:
    speed = measured_speed(getattr(run.stage.net, "dtype", jnp.float32))
    step = max(work.seconds(speed).values())
  seconds = work.seconds(speed)
  print(f"{device.device_kind}: {speed.tflops:.3g} TFLOP/s, ", end="")
  print(f"{speed.hbm_gb:.3g} GB/s")
  print(f"a step: {work.flops:.3g} FLOPs, {work.hbm_bytes:.3g} bytes")
  for kind in ("compute", "hbm"):
    print(f"{kind:9} {seconds[kind]:.4f} s")
  with jax.set_mesh(setup.devices):
    measured = step_seconds(setup, compiled)
  print(f"predicted {step:.4f} s")
  print(f"measured  {measured:.4f} s")
  print(f"measured / predicted {measured / step:.2f}")


if __name__ == "__main__":
  main()
