"""kill -9 at random instants: the end is that of a run that was left alone."""

import collections
import json
import random
import signal
import time

import pytest

STEPS = 16


def names(workdir) -> list[str]:
  """Of complete checkpoints."""
  folder = workdir / "checkpoints"
  found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return [name for name in found if name.isdigit()]


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
  if kind == "save":
    begun = len(names(workdir))
    # On a busy machine it may come to its end while this looks elsewhere.
    ended = lambda: run.process.poll() is not None
    run.until_true(lambda: len(names(workdir)) > begun or ended())
    run.until_true(lambda: saving() or ended())
    time.sleep(rng.uniform(0, 0.8))
  run.kill()
  assert run.process.returncode in (0, -signal.SIGKILL), run.out
  assert run.err == ""
  if "compiled in" not in run.out:
    return "compile"
  return "save" if saving() else "step"


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again(training, undisturbed, tmp_path, kills):
  rng, found = random.Random(kills), collections.Counter()
  for i in range(kills):
    kind = ("save", "step", "compile")[i % 3]
    if len(names(tmp_path)) > STEPS - 4:
      kind = "compile"  # not to reach the end
    run = training.start(tmp_path)
    found[wait_and_kill(run, tmp_path, kind, rng)] += 1
  print(found, training.steps(tmp_path))
  assert len(training.steps(tmp_path)) >= kills / 5
  if kills > 9:
    assert min(found[x] for x in ("compile", "step", "save")) >= 2, found
  run = training.start(tmp_path)
  assert "resumed from step " in run.end(0, timeout=240)
  assert run.err == ""
  training.check_same(tmp_path, undisturbed, STEPS)
  left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
  assert sorted(map(int, left)) == training.steps(undisturbed)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  steps = [json.loads(line)["step"] for line in lines]
  assert steps == list(range(1, STEPS + 1))
