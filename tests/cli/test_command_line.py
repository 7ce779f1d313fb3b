"""Flags: importing defines none, and what parse makes of a command line."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from imagen_jax.cli import command_line

PACKAGE = pathlib.Path(__file__).parents[2] / "imagen_jax"
# Another program with flags of our names has parsed its own before it imports
# all verbs and calls some of them.
OTHER_PROGRAM = """
import os
from absl import flags

for name in ("config", "steps", "workdir", "seed", "output"):
  flags.DEFINE_string(name, "theirs", "Another program's.")
flags.mark_flag_as_required("steps")
flags.FLAGS(["other", "--workdir=w"])
names = set(os.environ)
import imagen_jax.train, imagen_jax.sample, imagen_jax.evaluate
import imagen_jax.pretrain, imagen_jax.export, imagen_jax.compile
import imagen_jax.shapes.write_captions, imagen_jax.text.train_vocabulary

for verb in (imagen_jax.compile, imagen_jax.train, imagen_jax.compile):
  try:
    verb.main(["--config=shapes16", "--config.train.seed=3"])
  except ValueError as error:
    print(error)
for name in ("config", "steps", "workdir", "seed", "output"):
  assert flags.FLAGS[name].value == ("w" if name == "workdir" else "theirs")
print(sorted(set(os.environ) & {"TF_ENABLE_ONEDNN_OPTS", "TPU_LOG_DIR"}))
"""


def test_verbs_work_together_in_another_program():
  unset = ("TF_ENABLE_ONEDNN_OPTS", "TF_CPP_MIN_LOG_LEVEL")
  done = subprocess.run(
    ["env", *(f"--unset={x}" for x in unset), sys.executable, "-c"]
    + [OTHER_PROGRAM],
    cwd=PACKAGE.parent,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  topology = "--topology is needed, such as v4-512 or v5e-8"
  assert done.stdout.splitlines() == [
    topology,
    "--workdir is needed: where checkpoints and metrics go",
    topology,
    "[]",
  ]


@pytest.mark.parametrize(
  ("verb", "names"),
  [
    ("train", ["workdir"]),
    ("sample", ["prompts_file", "image", "weights", "outdir"]),
    ("export", ["workdir", "output"]),
    (
      "evaluate",
      ["dataset", "reference_dir", "inception", "suite", "against", "outdir"],
    ),
    ("pretrain", ["captions", "output"]),
    ("compile", ["json"]),
  ],
)
def test_every_flag_that_is_a_path_knows_the_home_folder(
  monkeypatch, verb, names
):
  monkeypatch.setenv("HOME", "/home/me")
  define = importlib.import_module(f"imagen_jax.{verb}").main.define_flags
  argv = ["--config=shapes16", *(f"--{name}=~/a" for name in names)]
  args = command_line.parse(define, argv)
  assert [args[name].value for name in names] == ["/home/me/a"] * len(names)
  monkeypatch.setenv("HOME", "")
  for name in names:
    with pytest.raises(command_line.BadFlags, match=f"--{name}=.* home folder"):
      command_line.parse(define, [f"--{name}=~/a"])
  # The others are no paths.
  values = flags.FlagValues()
  define(values)
  told = re.compile(r"\b(file|folder|where)\b(?!.* is prepared)", re.I)
  strings = [x for x in values if values[x].flag_type() == "string"]
  assert [x for x in strings if told.search(values[x].help)] == []


def acts_on_import(text: str) -> list[str]:
  """Calls in a module that define flags or set variables when it is imported.

  What only the program does, below if __name__ == "__main__", does not count.
  """
  found, nodes = [], [ast.parse(text)]
  for node in nodes:  # which grows
    match node:
      case ast.FunctionDef() | ast.Lambda():
        continue
      case ast.If() if "__name__" in ast.unparse(node.test):
        continue
      case ast.Call():
        said = ast.unparse(node.func)
        if "DEFINE_" in said or "define_" in said or "os.environ" in said:
          found.append(said)
      case ast.Subscript(value=value, ctx=ast.Store()):
        if ast.unparse(value) == "os.environ":
          found.append(ast.unparse(node))
    nodes += ast.iter_child_nodes(node)
  return found


def test_no_module_acts_on_import():
  for path in PACKAGE.rglob("*.py"):
    assert acts_on_import(path.read_text("utf-8")) == [], path


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("STEPS = flags.DEFINE_integer('steps', 1, '')", 1),
    ("class A:\n  x = program.define_config('a.py')", 1),
    ("os.environ['A'] = '1'\nos.environ.setdefault('B', '2')", 2),
    ("def f():\n  flags.DEFINE_integer('steps', 1, '')", 0),
    ("if __name__ == '__main__':\n  os.environ['A'] = '1'", 0),
    ("x = os.path.join('a', 'b')", 0),
  ],
)
def test_planted_acts_are_found(text, found):
  assert len(acts_on_import(text)) == found


def define(values: flags.FlagValues) -> None:
  command_line.define_config(values, "configs/x.py")
  flags.DEFINE_integer("steps", 3, "Steps.", flag_values=values)


def test_what_is_parsed():
  argv = ["--config", "shapes16", "--config.train.steps", "7", "--steps=2"]
  argv += ["--noconfig.data.cache", "--config.data.seed=4"]
  args = command_line.parse(define, argv)
  assert args.steps == 2
  assert args.config.optimizer.decay_steps == args.config.train.steps == 7
  assert args.config.data.cache is False
  assert args.config.data.seed == 4  # one that the config leaves at its default
  assert command_line.given(args) == argv
  again = command_line.parse(define, ["--config=configs/shapes16.py"])
  assert (again.steps, again.config.train.steps) == (3, 12_000)
  assert "steps" not in flags.FLAGS and "config" not in flags.FLAGS


@pytest.mark.parametrize(
  ("argv", "kind", "said"),
  [
    ([], ValueError, "--config is needed, such as configs/x.py"),
    (["--config=x.py"], ValueError, "config 'x.py' cannot be read, expected"),
    (["--config=x"], ValueError, "config 'x' is unknown, expected a file or"),
    (["--config=imagen:x"], command_line.BadFlags, "imagen.py:x is unknown"),
    (["--steps=x"], command_line.BadFlags, "flag --steps=x: invalid literal"),
    (["--step=1"], command_line.BadFlags, "Unknown command line flag 'step'"),
    (["a"], command_line.BadFlags, "unexpected argument 'a', expected only"),
    (
      ["--config=shapes", "--config.a.b=1"],
      command_line.BadFlags,
      "the config has no key for --config.a.b=1",
    ),
    (
      ["--config.a=1", "--config=shapes"],
      command_line.BadFlags,
      "Found --config.a=1 in argv before a value for --config",
    ),
  ],
)
def test_what_cannot_be_parsed(argv, kind, said):
  with pytest.raises(ValueError) as caught:
    command_line.parse(define, argv)
  assert type(caught.value) is kind
  assert str(caught.value).startswith(said)


def test_a_mistake_in_a_configs_code_is_not_reworded(tmp_path):
  (tmp_path / "a.py").write_text("def get_config(): return 1 + '1'")
  with pytest.raises(TypeError, match="unsupported operand"):
    command_line.parse(define, [f"--config={tmp_path}/a.py"])
