"""Makes the page of memory and time by config and device.

Parameters and bytes come from the shapes of each config's arrays, without
computing any. TPU rows come from launch/compiled.json.
"""

import json
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax

from imagen_jax import build
from imagen_jax.build import configs
from imagen_jax.training.step import init_state

STAGES = (
  *("shapes16", "shapes64", "shapes256"),
  *("base_64:300M", "base_64:500M", "base_64:1B", "base_64", "sr256", "sr1024"),
)
INTRO = """# Memory and time by config and device

Choose a config by what your device holds, and a slice by the days you have.
`train --dry_run` prints the memory of a config on your devices, and
`python -m imagen_jax.compile` of a training step on a TPU slice
([planning](../planning.md)).

## Stages

"Sampling" is the net's weights as `sample` keeps them. "Training" is what one
device holds between steps if nothing is sharded: float32 weights, their
average and the optimizer's state. A step adds the gradient and activations. T5
comes on top in both. A checkpoint holds what training does.

"""
CASCADES = """
DeepFloyd IF and the paper's cascade take T5-XXL: 9.5 GB in bfloat16, 4.9 GB
with `--config.text.int8=True`. `sample` frees it before it loads a net, and
`--offload` keeps one net at a time in the device's memory.

"""
TPUS = """
## On TPUs

From the compiler of the TPUs ([all columns](compiled.md)). Seconds and days are
predicted, not measured: no TPU has run this code yet.

"""
HERE = """
## On two CPU cores

Measured on two idle cores of a Xeon. A slow machine takes three times as long.

"""
MEASURED = (  # work, memory of the process, time, command
  (
    "first image of the demo, compiling included",
    *("0.9 GB", "14 s", '`launch/quickstart.sh "a red star"`'),
  ),
  ("a later one, with the compile cache", "0.9 GB", "8 s", "the same"),
  (
    "a training step of shapes16, batch 32",
    *("2.4 GB", "0.63 s", "`python benchmarks/train_overhead.py`"),
  ),
  (
    "the demo's trainings, one after another",
    *("2.4 GB", "4 hours", "[model cards](../model_cards.md)"),
  ),
)


def page(root: pathlib.Path) -> str:
  """Returns the page, in Markdown."""
  text = (root / "launch" / "compiled.json").read_text("utf-8")
  return "".join(
    [INTRO, *stages(), CASCADES, TPUS, *tpus(json.loads(text)), HERE]
  )


def stages() -> Iterator[str]:
  """Yields the lines of the table of stages."""
  yield from head("config", "image", "parameters", "T5", "sampling", "training")
  for name in STAGES:
    config = configs.read_config(name)
    stage, text = build.stage(config.stage), build.text(config.text)
    params = jax.eval_shape(
      lambda stage=stage, text=text: build.init_net(
        stage, text, jax.random.key(0)
      )
    )
    optimizer = build.optimizer(config.optimizer)
    state = jax.eval_shape(lambda p, o=optimizer: init_state(p, o), params)
    kept = build.sampling_shapes(stage, text)
    yield row(
      f"`{name}`",
      f"{stage.size}x{stage.size}",
      millions(count(params)),
      millions(count(text.shapes())),
      gigabytes(size(kept)),
      gigabytes(size(state)),
    )


def tpus(rows: list[dict[str, Any]]) -> Iterator[str]:
  """Yields the lines of the table of compiled programs."""
  yield from head(
    *("config", "program", "slice", "batch", "GiB of a chip"),
    *("seconds", "days", "chip-hours"),
  )
  for one in rows:
    slices, gib = one["num_slices"], 2**30
    days, hours = one.get("days"), one.get("chip_hours")
    yield row(
      "`" + re.search(r"--config=configs/(\S+)\.py", one["command"])[1] + "`",
      one["program"],
      (f"{slices} x " if slices > 1 else "") + one["topology"],
      str(one["batch"]),
      f"{one['peak_bytes'] / gib:.1f} of {one['hbm_limit_bytes'] / gib:.1f}",
      f"{one['predicted_seconds']:.3g}",
      f"{days:.1f}" if days else "",
      f"{round(hours, -3):,.0f}" if hours else "",
    )


def here() -> Iterator[str]:
  """Yields the lines of the table of what was measured on a CPU."""
  yield from head("work", "memory of the process", "time", "command")
  for cells in MEASURED:
    yield row(*cells)


def head(*cells: str) -> Iterator[str]:
  """Yields the first two lines of a table."""
  yield row(*cells)
  yield row(*["---"] * len(cells))


def row(*cells: str) -> str:
  """Returns a line of a table."""
  return "|" + "|".join(f" {cell} " for cell in cells) + "|\n"


def count(tree: Any) -> int:
  """Returns the number of elements of all arrays."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def size(tree: Any) -> int:
  """Returns the bytes of all arrays."""
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def millions(number: int) -> str:
  """Returns a count as millions, or billions."""
  return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.3g}M"


def gigabytes(number: int) -> str:
  """Returns bytes as GB, or MB."""
  return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.0f} MB"
