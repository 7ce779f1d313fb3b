"""The recipes of CONTRIBUTING.md, followed to the letter."""

import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from tensorflow_datasets.core import registered

from imagen_jax import build, sample, train
from imagen_jax.build import diffusion, nets
from imagen_jax.cli import command_line
from imagen_jax.configs import shapes16, shapes64
from imagen_jax.data import images
from imagen_jax.data.source import load_source
from imagen_jax.diffusion import samplers
from imagen_jax.text.encoder import Unconditional
from imagen_jax.training import metrics_window, setup, step
from imagen_jax.types import Conditioning, TextEmbedding

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def recipe(name: str) -> tuple[str, list[str], dict[str, list[str]]]:
  """Returns a recipe's block of code, inline code, and commands by verb."""
  text = re.search(rf"\*\*{name}\.\*\*.*?(?=\n\*\*A |\n## |\Z)", TEXT, re.S)[0]
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


def test_a_net(monkeypatch):
  code, inline, _ = recipe("A net")
  names = {"__name__": "flat"}
  exec(code, names)
  (line,) = [text for text in inline if text.startswith('"')]
  monkeypatch.setattr(nets, "NETS", nets.NETS | eval("{" + line + "}", names))
  config = shapes16.get_config()
  (choice,) = [text for text in inline if text.startswith("config.stage")]
  exec(choice, {"config": config})
  run = build.run(config)
  assert run.stage.net == names["Flat"](width=32)
  shapes = setup.net_shapes(run.stage, run.text)
  batch = setup.batch_shapes(run)
  text = TextEmbedding(
    jax.ShapeDtypeStruct((*batch["mask"].shape, run.text.dim), jnp.float32),
    batch["mask"],
  )
  draws = jax.eval_shape(lambda: run.stage.draw(jax.random.key(0), 32))
  loss, _ = jax.eval_shape(run.stage.loss, shapes, draws, batch["image"], text)
  assert loss.shape == (32,)
  # Each input changes its output.
  x, level = jnp.arange(96.0).reshape(2, 4, 4, 3), jnp.array([100.0, 900.0])
  tokens = jnp.sin(jnp.arange(48.0)).reshape(2, 3, 8)

  @jax.jit
  def outputs():
    def apply(x, level, tokens):
      text = TextEmbedding(tokens, jnp.ones((2, 3), bool))
      return net.apply(params, x, level, Conditioning(text))

    net = names["Flat"](8)
    cond = Conditioning(TextEmbedding(tokens, jnp.ones((2, 3), bool)))
    params = net.init(jax.random.key(0), x, level, cond)
    return (
      apply(x, level, tokens),
      apply(x[::-1], level, tokens),
      apply(x, level[::-1], tokens),
      apply(x, level, tokens[::-1]),
    )

  out, *others = outputs()
  for other in others:
    assert float(jnp.abs(out - other).max()) > 1e-3


def test_a_data_source(monkeypatch, tmp_path):
  code, inline, _ = recipe("A data source")
  assert "--config.data.name=my_set" in inline
  assert (ROOT / "imagen_jax" / "data/source.py").exists()
  assert "data/source.py" in inline
  names = {"__name__": "my_set"}
  monkeypatch.setitem(sys.modules, "my_set", types.ModuleType("my_set"))
  # TFDS keeps no class of this test.
  known = dict(registered._DATASET_REGISTRY)
  monkeypatch.setattr(registered, "_DATASET_REGISTRY", known)
  exec(code, names)
  names["FOLDER"] = tmp_path
  for value in (10, 200):
    image = Image.fromarray(np.full((8, 8, 3), value, np.uint8))
    image.save(tmp_path / f"{value}.png")
    (tmp_path / f"{value}.txt").write_text(f"level {value}\n")
  records = load_source("my_set", "train", tmp_path / "sets")
  found = {one["caption"]: one["image"] for one in records}
  assert sorted(found) == ["level 10", "level 200"]
  pixels = images.decode(found["level 200"])
  np.testing.assert_array_equal(pixels, np.full((8, 8, 3), 200))


def test_a_text_encoder(tmp_path):
  code, inline, commands = recipe("A text encoder")
  path = tmp_path / "small_text.py"
  path.write_text(code)
  words = [
    word.replace("configs/small_text.py", str(path))
    for word in commands["train"]
  ]
  args = command_line.parse(train.define_flags, words)
  assert args.dry_run
  run = build.run(args.config)
  assert run.text.dim == 512
  assert run.text.weights == "t5/model.safetensors"
  assert {"nets/", "ENCODERS", "build/nets.py", "interop/"} <= {*inline}
  for name in ("bert", "clip_l14"):
    assert f"configs/{name}.py" in inline
    text = build.text(build.configs.read_config(name).text)
    assert type(text.encoder) in build.nets.ENCODERS.values()


def test_a_metric():
  code, inline, _ = recipe("A metric")
  assert {"metrics", "make_train_step", "training/step.py"} <= {*inline}
  source = pathlib.Path(step.__file__).read_text("utf-8")
  place = "    metrics = {\n"
  assert source.count(place) == 1
  names = {"__name__": step.__name__}
  exec(source.replace(place, place + code), names)
  optimizer = optax.sgd(0.5)
  params = {"w": jnp.ones(3)}

  class Stage:
    """A stage whose loss is the sum of the weights."""

    def draw(self, key, batch):
      return step.Draws(jnp.zeros(batch, bool), *[jnp.zeros(batch)] * 4)

    def loss(self, params, draws, x, text, lowres=None):
      del x, text, lowres
      return params["w"].sum() + draws.time, draws.time

  one = names["make_train_step"](
    Stage(), Unconditional(), optimizer, decay=0.9, seed=0
  )
  state = names["init_state"](params, optimizer)
  _, metrics = jax.jit(one)(state, {}, {"image": jnp.zeros((2, 4, 4, 3))})
  assert float(metrics["update_ratio"]) == pytest.approx(1.0)
  window = metrics_window.MetricsWindow(3)
  window.add(1, metrics)
  assert window.take()[0]["update_ratio"] == pytest.approx(1.0)


def test_a_study(tmp_path):
  code, inline, _ = recipe("A study")
  path = tmp_path / "rates.py"
  path.write_text(code)
  (command,) = [text for text in inline if text.startswith("python launch")]
  script, *flags = shlex.split(command)[1:]
  sweep = runpy.run_path(str(ROOT / script))
  assert flags == [
    "--config=configs/rates.py",
    "--workdir=runs/rates",
    "--dry_run",
  ]
  found = sweep["commands"](str(path), "runs/rates", "", ())
  assert [*found] == [
    "learning_rate=0.0005",
    "learning_rate=0.001",
    "learning_rate=0.002",
  ]


def test_every_recipe_is_followed():
  recipes = re.findall(r"^\*\*(A [\w ]+)\.\*\*", TEXT, re.M)
  tests = {name for name in globals() if name.startswith("test_a_")}
  named = {f"test_{name.lower().replace(' ', '_')}" for name in recipes}
  assert len(recipes) == 7
  assert named <= tests


def test_the_layout_has_every_folder():
  (table,) = re.findall(r"^\| folder \|.*?\n\n", TEXT, re.M | re.S)
  named = {*re.findall(r"`([\w/]+/)`", table)}
  assert [name for name in named if not (ROOT / name).is_dir()] == []
  packages = {
    f"imagen_jax/{path.parent.name}/"
    for path in (ROOT / "imagen_jax").glob("*/__init__.py")
    if not path.parent.is_symlink()
  }
  assert packages <= named
