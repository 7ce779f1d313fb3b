"""Goodput over the life of a workdir."""

import json

import pytest

from imagen_jax.training import goodput
from imagen_jax.training.goodput import FILE, PARTS, Goodput

STEP = {"compute": 6.0, "data": 2.0, "checkpoint": 1.0, "host": 1.0}


@pytest.fixture(autouse=True)
def no_setup(monkeypatch):
  """Setting up takes no time, so that sums are exact."""
  monkeypatch.setattr(goodput.time, "monotonic", lambda: 0.0)


def run(workdir, first, *steps, said=None):
  """A run that logs each of some steps; each log covers ten seconds."""
  found = Goodput()
  found.resume(str(workdir), first, (said or []).append)
  for step in steps:
    found.add(step, STEP)
    (workdir / FILE).write_text(found.text())
  return found


def test_a_run_that_is_resumed_where_it_ended(tmp_path):
  assert run(tmp_path, 0, 10, 20).share("compute") == pytest.approx(0.6)
  found = run(tmp_path, 20, 30)
  assert found.seconds["compute"] == 18 and sum(found.seconds.values()) == 30
  assert (found.runs, found.steps, found.lost_steps) == (2, 30, 0)


def test_steps_that_were_not_saved_are_lost(tmp_path):
  """Of 40 steps 10 run again: a quarter of all that steps took."""
  run(tmp_path, 0, 10, 20, 30, 40)
  found = run(tmp_path, 30, 40)
  assert (found.runs, found.steps, found.lost_steps) == (2, 40, 10)
  assert found.seconds["lost"] == pytest.approx(10)
  assert found.seconds["compute"] == pytest.approx(24)
  assert found.share("compute") == pytest.approx(24 / 50)
  assert found.sentence().startswith(
    "goodput 48 % of 0:00:50 in 2 runs (10 steps lost): compute 48 %, lost 20 %"
  )


def test_what_starts_a_run_counts(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(goodput.time, "monotonic", lambda: now[0])
  found = Goodput()
  now[0] += 2
  with found.part("restore"):
    now[0] += 3
  found.resume(str(tmp_path), 0)
  with found.part("compile"):
    now[0] += 4
  assert found.add(1, {"compute": 1.0}) == pytest.approx(0.1)
  spent = {"setup": 2, "restore": 3, "compile": 4, "compute": 1}
  assert found.seconds == dict.fromkeys(PARTS, 0) | spent


@pytest.mark.parametrize(
  "content",
  [
    "",
    "[]",
    '{"runs": 1}',
    '{"runs": true, "step": 1, "steps": 1, "lost_steps": 0, "seconds": {}}',
    '{"runs": 1, "step": 1, "steps": 1, "lost_steps": 0, "seconds": []}',
    '{"runs": 1, "step": 1, "steps": 1, "lost_steps": 0, "seconds": '
    '{"compute": NaN}}',
  ],
)
def test_a_damaged_file_begins_anew(tmp_path, content):
  (tmp_path / FILE).write_text(content)
  said = []
  found = Goodput()
  found.resume(str(tmp_path), 5, said.append)
  found.add(6, STEP)
  assert len(said) == 1 and "goodput begins anew" in said[0]
  assert (found.runs, found.steps) == (1, 1)
  assert json.loads(found.text())["seconds"].keys() == set(PARTS)
