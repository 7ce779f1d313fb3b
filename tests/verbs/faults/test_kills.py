"""kill -9 at random instants: the end is that of a run that was left alone."""

import collections
import json
import random
import time

import pytest

STEPS = 16


def wait_and_kill(run, workdir, kind: str, rng: random.Random) -> str:
  """Kills a run while it does this, about; gives what it was really doing."""
  folder = workdir / "checkpoints"
  saving = lambda: any(folder.glob("*.orbax-checkpoint-tmp"))
  run.until("compiling")
  if kind == "compile":
    time.sleep(rng.uniform(0, 2.5))
  else:
    run.until("^train ")  # the first of its steps
  if kind == "step":
    time.sleep(rng.uniform(0, 0.5))
  if kind == "second save":
    run.until_true((folder / "1").exists)
  if kind.endswith("save"):
    run.until_true(saving)
    time.sleep(rng.uniform(0, 0.8))
  assert run.process.poll() is None, run.out
  run.kill()
  assert run.err == ""
  if "compiled in" not in run.out:
    return "compile"
  return "save" if saving() else "step"


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again(training, undisturbed, tmp_path, kills):
  rng, found = random.Random(kills), collections.Counter()
  kinds = ["second save", *6 * ["step", "compile", "save"], "step"]
  for kind in kinds[:kills]:
    run = training.start(tmp_path)
    found[wait_and_kill(run, tmp_path, kind, rng)] += 1
  print(found, training.steps(tmp_path))
  if kills > 9:
    assert min(found[x] for x in ("compile", "step", "save")) >= 2, found
  run = training.start(tmp_path)
  assert "resumed from step " in run.end(0, timeout=240)
  assert run.err == ""
  training.check_same(tmp_path, undisturbed, STEPS)
  names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
  assert sorted(map(int, names)) == training.steps(undisturbed)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(line)["step"] for line in lines]
  assert steps == list(range(1, STEPS + 1))
