"""What the log writes of records that are not used as they are."""

import json
import types

import pytest

from imagen_jax import build
from imagen_jax.build.configs import read_config
from imagen_jax.training.goodput import Goodput
from imagen_jax.training.log import Log


def open_log(**data):
  """A log whose lines and numbers are kept, of steps that all went well."""
  config = read_config("configs/shapes16.py")
  config.data.update(data)
  said, written = [], []
  log = Log(
    build.run(config),
    types.SimpleNamespace(
      write=lambda step, numbers: written.append(numbers),
      write_file=lambda *args: None,
    ),
    0,
    types.SimpleNamespace(show=lambda *args: None, log=said.append),
    goodput=types.SimpleNamespace(add=lambda *args: 1.0, text=lambda: ""),
  )
  log._window = types.SimpleNamespace(
    take=lambda: ({"loss": 1.0, "skipped_steps": 0}, "")
  )
  return log, said, written


def test_small_images_are_counted_apart_and_told_of_once():
  log, said, written = open_log(least_side=64)
  for step in (1, 2):
    log.bad.add(None, 10**6)
    log.bad.add_small("record 7: image has 8 x 8 pixels", 10**6, 1.0)
    log.write(step)
  assert said == [
    "1 of 2 records read have images smaller than least_side, a share of 0.5"
  ]
  assert [row["small_images"] for row in written] == [1, 2]
  assert [row["bad_records"] for row in written] == [0, 0]


@pytest.mark.parametrize("least_side", [0, 64])
def test_without_small_images_nothing_is_said(least_side):
  log, said, written = open_log(least_side=least_side)
  log.write(1)
  assert said == [] and ("small_images" in written[0]) == (least_side > 0)


def test_the_end_of_a_run_counts_too():
  """The last checkpoint and the last grid come after the last metrics."""
  log, *_ = open_log()
  files = {}
  log.metrics.write_file = lambda step, name, text: files.update({name: text})
  log.goodput = Goodput()
  log.write(1)
  with log.clock.part("checkpoint"), log.goodput.part("samples"):
    pass
  assert log.finish(1).startswith("goodput ")
  seconds = json.loads(files["goodput.json"])["seconds"]
  assert seconds == {k: round(v, 3) for k, v in log.goodput.seconds.items()}
  assert log.goodput.seconds["checkpoint"] > 0 < log.goodput.seconds["samples"]
