"""launch/sweep.py: names, commands, and what is wrong with a sweep()."""

import functools
import importlib.util
import pathlib
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from imagen_jax.configs import shapes16


def get_config():
  return shapes16.get_config()
"""
SWEEP = """

def sweep():
  for width in (32, 64):
    yield {"stage.net.embed_dim": width, "optimizer.learning_rate": 1e-4}
"""


@pytest.fixture(scope="module")
def sweep():
  """The script as a module."""
  path = ROOT / "launch" / "sweep.py"
  spec = importlib.util.spec_from_file_location("sweep", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def write(tmp_path):
  """Writes a config with a sweep() that yields the given points."""

  def config(*points):
    path = tmp_path / "config.py"
    path.write_text(f"{CONFIG}\n\ndef sweep():\n  yield from {points!r}\n")
    return str(path)

  return config


def run(*args, cwd):
  """Runs the script."""
  words = [sys.executable, ROOT / "launch" / "sweep.py", *args]
  return subprocess.run(words, cwd=cwd, capture_output=True, text=True)


def names(sweep, path):
  return list(sweep.commands(path, "root", "", ()))


def test_dry_run_prints_one_command_per_point(tmp_path):
  (tmp_path / "a b.py").write_text(CONFIG + SWEEP)
  args = ("--config=a b.py", "--workdir=gs://b/r/", "--dry_run")
  args += ("--run=echo {index} {name} --", "--config.train.steps=500")
  done = run(*args, cwd=tmp_path)
  assert (done.returncode, done.stderr) == (0, "")
  for index, width in enumerate((32, 64)):
    name = f"embed_dim={width}-learning_rate=0.0001"
    assert shlex.split(done.stdout.splitlines()[index]) == [
      *("echo", str(index), name, "--"),
      *("python", "-m", "imagen_jax.train", "--config=a b.py"),
      f"--workdir=gs://b/r/{name}",
      "--config.train.steps=500",
      f"--config.stage.net.embed_dim={width}",
      "--config.optimizer.learning_rate=0.0001",
    ]


def test_every_point_runs_and_failures_are_named(tmp_path):
  (tmp_path / "x.py").write_text(CONFIG + SWEEP)
  failing = 'echo "$4"; command -v python; [ $1 != 0 ] || exit 3'
  args = (
    "--config=x.py",
    "--workdir=r",
    f"--run=sh -c '{failing}' 0 {{index}}",
  )
  done = run(*args, cwd=tmp_path)
  assert done.returncode == 1
  python = str(pathlib.Path(sys.executable).parent / "python")
  assert done.stdout.splitlines() == ["imagen_jax.train", python] * 2
  *shown, last = done.stderr.splitlines()
  assert [line[:5] for line in shown] == ["[1/2]", "[2/2]"]
  name = "embed_dim=32-learning_rate=0.0001"
  assert last == f"error: 1 of 2 runs failed: {name} (exit code 3)"


def test_a_bad_sweep_is_one_sentence(tmp_path):
  (tmp_path / "x.py").write_text(CONFIG)
  done = run("--config=x.py", "--workdir=r", "--dry_run", cwd=tmp_path)
  assert (done.returncode, done.stdout) == (1, "")
  assert done.stderr.startswith("error: x.py has no sweep(), expected one")
  assert done.stderr.count("\n") == 1


def test_the_commands_mean_the_points(sweep, write):
  points = (
    {"stage.net.embed_dim": 64, "stage.net.channel_mult": (1, 2)},
    {"stage.prediction": "v", "data.cache": False},
    {"optimizer.clip_norm": 0.5, "train.seed": 3},  # this one at its default
  )
  path = write(*points)
  commands = sweep.commands(path, "r", "", ["--config.train.log_every=7"])
  for point, words in zip(points, commands.values(), strict=True):
    assert words[:4] == ["python", "-m", "imagen_jax.train", f"--config={path}"]
    config = sweep.configured(path, words[5:])
    for key, value in {**point, "train.log_every": 7}.items():
      found = functools.reduce(getattr, key.split("."), config)
      assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
  ("points", "expected"),
  [
    ([{}], ["unchanged"]),
    ([{"train.steps": 500, "data.cache": True}], ["cache=True-steps=500"]),
    ([{"stage.net.channel_mult": (1, 2)}], ["channel_mult=1,2"]),
    (
      [{"train.seed": 1, "data.seed": 2}, {"train.steps": 500}],
      ["data.seed=2-train.seed=1", "steps=500"],
    ),
  ],
)
def test_names(sweep, write, points, expected):
  assert names(sweep, write(*points)) == expected


def test_names_do_not_depend_on_the_order_of_keys(sweep, write):
  point = {"train.steps": 500, "data.cache": True}
  other = dict(reversed(point.items()))
  assert names(sweep, write(point)) == names(sweep, write(other))


def test_names_are_fit_for_folders(sweep, write):
  points = [{"data.data_dir": text} for text in ("a/b", "a b", "x" * 200)]
  found = names(sweep, write(*points))
  assert len({*found}) == 3  # though two read alike
  for name in found:
    assert len(name) < 120
    assert not {"/", " "} & {*name}
    assert name.startswith("data_dir=")
  assert found == names(sweep, write(*points))


@pytest.mark.parametrize(
  ("points", "sentence"),
  [
    ([], "sweep.. yields no point"),
    ([3], "sweep.. yields 3, expected a dict"),
    ([{"train.steps": 500}] * 2, "sweep.. yields the point steps=500 twice"),
    ([{"stage.net.embd_dim": 1}], "unknown config key stage.net.embd_dim"),
    (
      [{"stage.nett.embed_dim": 1}],
      "no key for --config.stage.nett.embed_dim=1",
    ),
    ([{"stage.size.x": 1}], "no key for --config.stage.size.x=1"),
    ([{"steps": 5}], "config key steps is unknown"),
    ([{"stage.net": 1}], "'stage.net': 1"),
    ([{"train.steps": "many"}], "'train.steps': 'many'"),
    ([{"train.steps": None}], "train.steps to None, expected a number"),
    ([{"train.steps": 9}], "warmup_steps is 200, expected fewer"),
    ([{"stage.prediction": "noise"}], "prediction is 'noise', expected one of"),
  ],
)
def test_bad_points(sweep, write, points, sentence):
  with pytest.raises(ValueError, match=sentence):
    names(sweep, write(*points))


def test_overrides_count_in_the_check(sweep, write):
  path = write({"train.steps": 9})
  overrides = ["--config.optimizer.warmup_steps=0"]
  assert [*sweep.commands(path, "r", "", overrides)] == ["steps=9"]


def test_a_config_that_is_no_file(sweep):
  with pytest.raises(ValueError, match="'none.py' cannot be read"):
    names(sweep, "none.py")
