"""The recipes of CONTRIBUTING.md, followed to the letter."""

import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import build, sample, train
from imagen_jax.build import diffusion
from imagen_jax.cli import command_line
from imagen_jax.configs import shapes64
from imagen_jax.diffusion import samplers

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def recipe(name: str) -> tuple[str, list[str], dict[str, list[str]]]:
  """Returns a recipe's block of code, inline code, and commands by verb."""
  text = re.search(rf"\*\*{name}\.\*\*.*?(?=\n\*\*A |\Z)", TEXT, re.S)[0]
  block = re.search(r"```python\n(.*?)```", text, re.S)
  rest = re.sub(r"```.*?```", "", text, flags=re.S)
  inline = [" ".join(code.split()) for code in re.findall("`([^`]+)`", rest)]
  commands = {}
  for code in inline:
    if found := re.fullmatch(r"python -m imagen_jax\.(\w+) (.*)", code):
      commands[found[1]] = shlex.split(found[2])
  return block and block[1], inline, commands


def test_a_sampler(monkeypatch):
  code, inline, commands = recipe("A sampler")
  names = vars(samplers) | {}
  exec(code, names)
  monkeypatch.setattr(samplers, "Euler", names["Euler"], raising=False)
  (line,) = [text for text in inline if text.startswith('"')]
  table = eval("{" + line + "}", {"samplers": samplers})
  monkeypatch.setattr(diffusion, "SAMPLERS", diffusion.SAMPLERS | table)
  monkeypatch.setitem(diffusion.SAMPLING_KINDS, "step", diffusion.SAMPLERS)
  args = command_line.parse(sample.define_flags, commands["sample"])
  sampler = build.cascade(args.config).samplings[1].step
  assert sampler == samplers.Euler()
  # Euler's method on that ODE is DDIM.
  keys = jax.random.split(jax.random.key(0), 2)
  z_t, x_hat = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 3))
  step = samplers.Step(jnp.full(2, -1.0), jnp.full(2, 0.5), None, x_hat, None)
  np.testing.assert_allclose(
    sampler(keys, z_t, x_hat, step),
    samplers.DDIM()(keys, z_t, x_hat, step),
    atol=1e-5,
  )
  tests = (ROOT / "tests/diffusion/test_dpm.py").read_text()
  assert "def test_order_of_convergence" in tests
  assert "(samplers.DDIM(), 1)" in tests  # of the form that it names


def stage_recipe(tmp_path):
  """The config's file, and the command that tries it, with this file."""
  code, inline, commands = recipe("A stage")
  path = tmp_path / "mine.py"
  path.write_text(code)
  assert "configs/mine.py" in inline
  assert '"mine": (NET, TEXT)' in inline
  command = [
    word.replace("configs/mine.py", str(path)).replace(
      "/tmp/mine", str(tmp_path / "run")
    )
    for word in commands["train"]
  ]
  return path, command


def test_a_stage(tmp_path):
  """What the command asks for is what the config can do."""
  _, command = stage_recipe(tmp_path)
  args = command_line.parse(train.define_flags, command)
  run = build.run(args.config)
  assert run.training.steps == 20
  assert run.stage.net.embed_dim == 64
  # A stage beside the demo's larger ones.
  assert run.text == build.text(shapes64.get_config().text)


@pytest.mark.slow
def test_a_stage_trains(tmp_path):
  _, command = stage_recipe(tmp_path)
  done = subprocess.run(
    [sys.executable, "-m", "imagen_jax.train", *command],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert " parameters on " in done.stdout
  assert "trained to step 20" in done.stdout


def test_a_dataset():
  _, inline, _ = recipe("A dataset")
  assert "--config.data.name=my_set" in inline
  for name in ("data/source.py", "shapes/"):
    assert (ROOT / "imagen_jax" / name).exists() and name in inline
