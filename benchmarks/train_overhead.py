"""Measures the overhead of training as shares of the mean step's time.

  python benchmarks/train_overhead.py [--config=configs/shapes16.py] \
    [--steps=300] [--workdir=DIR]

Runs the verb train with the config's settings, but with metrics and a
checkpoint every hundred steps, and reads the seconds that it logs. The moving
average of the weights is timed alone, an upper bound of its cost within a step.
Prints shares of the mean step. The costs of metrics and checkpoints are divided
by the config's own intervals between them.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax

from imagen_jax import build
from imagen_jax.build import configs
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.training.metrics import FILE
from imagen_jax.training.setup import Setup, set_up
from imagen_jax.training.step import ema_decay

EVERY = 100


def run(config: str, workdir: str, steps: int) -> list[dict[str, float]]:
  """Trains a stage and reads its metrics, one row per EVERY steps.

  The first row, which includes warming up, is left out.
  """
  train = f"--config.train.{{}}={EVERY}".format
  subprocess.run(
    [
      sys.executable, "-m", "imagen_jax.train", f"--config={config}",
      f"--workdir={workdir}", f"--config.train.steps={steps}",
      train("log_every"), train("checkpoint_every"),
      f"--config.train.sample_every={10 * steps}",
    ],
    check=True,
  )  # fmt: skip
  lines = (pathlib.Path(workdir) / FILE).read_text().splitlines()
  return [json.loads(line) for line in lines][1:]


def ema_seconds(setup: Setup) -> float:
  """Measures the seconds of one update of the weights' moving average."""
  state = setup.initialise()
  params, average = state.params, state.ema

  def move(average, params, step):
    d = ema_decay(step, 0.9999)
    return jax.tree.map(lambda e, p: d * e + (1 - d) * p, average, params)

  move = jax.jit(move, donate_argnums=0)
  step = jax.numpy.int32(10**6)
  average = jax.block_until_ready(move(average, params, step))
  count, begun = 20, time.monotonic()
  for _ in range(count):
    average = move(average, params, step)
  jax.block_until_ready(average)
  return (time.monotonic() - begun) / count


def main() -> None:
  """Prints the share of each overhead."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/shapes16.py")
  parser.add_argument("--steps", type=int, default=300)
  parser.add_argument("--workdir")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    rows = run(args.config, args.workdir or folder, args.steps)
  config = configs.read_config(args.config)
  each = build.run(config)
  mean = lambda name: sum(row[f"seconds/{name}"] for row in rows) / len(rows)
  step = mean("compute") + mean("data")
  shares = {
    "waiting for data": mean("data"),
    "numbers told": mean("host") * EVERY / each.training.log_every,
    "checkpoints": mean("checkpoint") * EVERY / each.training.checkpoint_every,
    "EMA, by itself": ema_seconds(set_up(each, make_mesh(each.mesh))),
  }
  print(f"a step takes {step:.3f} s on {jax.devices()[0].device_kind}")
  for name, seconds in shares.items():
    print(f"{name:18} {seconds / step:7.2%} of it")


if __name__ == "__main__":
  main()
