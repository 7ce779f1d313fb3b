"""A notebook or a server that imports us stays as it was."""

import asyncio
import json
import logging
import os
import pathlib
import runpy
import subprocess
import sys
import threading
import warnings

import jax
import pytest
from absl import logging as absl_logging

from imagen_jax.cli import program

PROGRAM = pathlib.Path(__file__).with_name("process_state.py")


@pytest.fixture(scope="module")
def state():
  return runpy.run_path(str(PROGRAM))


def test_neither_imports_nor_calls_change_the_process(tmp_path):
  done = subprocess.run(
    [sys.executable, str(PROGRAM), str(tmp_path)],
    cwd=PROGRAM.parents[1],
    env=os.environ | {"PYTHONPATH": str(PROGRAM.parents[1])},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["imports"] == found["calls"] == []
  assert found["downloads"] in ([], ["threads"])  # of the Hub's client's bars
  assert found["requests"] == ["someone/a/net.safetensors"]


class Policy(asyncio.DefaultEventLoopPolicy):
  class _loop_factory(asyncio.SelectorEventLoop):
    pass


def planted(monkeypatch) -> dict[str, object]:
  """Changes as a library may make them, by what is to show them."""
  listen = lambda *_, **__: None
  listeners = jax._src.monitoring._event_duration_secs_listeners
  logger = absl_logging.get_absl_logger()
  return {
    "event loops": lambda: asyncio.set_event_loop_policy(Policy()),
    "warning filters": lambda: warnings.filterwarnings("ignore", module="x"),
    "JAX's listeners": lambda: monkeypatch.setattr(
      jax._src.monitoring,
      "_event_duration_secs_listeners",
      [*listeners, listen],
    ),
    "logger absl": lambda: monkeypatch.setattr(logger, "filters", [listen]),
    "logger root": lambda: monkeypatch.setattr(logging.root, "level", 5),
    "environment": lambda: monkeypatch.setenv("PLANTED", "1"),
    "sys.path": lambda: monkeypatch.syspath_prepend("/planted"),
    "threads": threading.Thread(target=threading.Event().wait, args=(9,)).start,
  }


def test_planted_changes_are_found(state, monkeypatch):
  policy = asyncio.get_event_loop_policy()
  with warnings.catch_warnings():
    for name, change in planted(monkeypatch).items():
      before = state["snapshot"]()
      change()
      assert state["changed"](before) == [name]
  asyncio.set_event_loop_policy(policy)


def test_a_verb_leaves_its_process_as_it_was(state, monkeypatch, capsys):
  """What absl does itself aside: its handler on the root's log."""
  monkeypatch.setattr(sys, "argv", ["verb"])

  def act(args):
    assert not absl_logging.level_info()
    warnings.warn_explicit("too large", UserWarning, "x.py", 1, "PIL.Image")
    warnings.warn_explicit("of ours", UserWarning, "x.py", 1, "other")

  before = state["snapshot"]()
  with pytest.raises(SystemExit), pytest.warns(UserWarning) as caught:
    program.run(program.Verb(lambda values: None, act))
  assert [str(each.message) for each in caught] == ["of ours"]
  assert set(state["changed"](before)) <= {"logger root"}
