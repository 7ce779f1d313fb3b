"""build.configs: which file a name is of, and what is wrong with one."""

import pathlib
import re

import pytest

from imagen_jax.build import configs
from imagen_jax.configs import shapes16

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "imagen_jax" / "configs"


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty folder to stand in, outside of any checkout."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  ("name", "file", "argument"),
  [
    ("shapes", "shapes.py", None),
    ("configs/shapes.py", "shapes.py", None),
    ("deepfloyd_if:xl,l", "deepfloyd_if.py", "xl,l"),
    ("configs/t5_xxl.py:", "t5_xxl.py", ""),
    ("base_64", "base_64.py", None),
    ("base64", "base_64.py", None),
    ("configs/base64.py:300M", "base_64.py", "300M"),
  ],
)
def test_a_shipped_config_is_found_outside_a_checkout(
  folder, name, file, argument
):
  assert configs.find_config(name) == (SHIPPED / file, argument)


@pytest.mark.parametrize("name", ["configs/shapes.py", "configs/base64.py:1B"])
def test_in_a_checkout_it_is_the_checkouts(monkeypatch, name):
  monkeypatch.chdir(ROOT)
  path, _ = configs.find_config(name)
  assert path.parts[0] == "configs" and path.is_file()


def test_a_file_takes_precedence(folder, monkeypatch):
  (folder / "configs").mkdir()
  for name in ("shapes", "mine", "configs/shapes.py", "configs/base64.py"):
    (folder / name).write_text("def get_config():\n  return {'mine': 1}\n")
    for given in (name, str(folder / name)):
      path, argument = configs.find_config(f"{given}:a:b")
      assert (str(path), argument) == (given, "a:b")
      assert configs.read_config(given).mine == 1
  monkeypatch.setenv("HOME", str(folder))
  assert configs.find_config("~/mine")[0] == folder / "mine"


def test_the_old_name_of_a_file_is_found_anywhere():
  path = configs.find_config(str(ROOT / "configs" / "base64.py"))[0]
  assert path == ROOT / "configs" / "base_64.py"


def test_every_config_has_a_name():
  files = {path.stem for path in (ROOT / "configs").glob("*.py")}
  assert set(configs.config_names()) == files - {"__init__"}
  for name in configs.config_names():
    assert configs.read_config(name) == configs.read_config(
      str(ROOT / "configs" / f"{name}.py")
    )


def test_a_config_of_ones_own_may_import_from_configs(folder, monkeypatch):
  """From the repository's root, by the old names too."""
  monkeypatch.syspath_prepend(ROOT)
  path = folder / "mine.py"
  path.write_text(
    "from configs import base64, shapes16\n\n"
    "def get_config():\n"
    "  config = shapes16.get_config()\n"
    "  config.mesh = base64.get_config().mesh\n"
    "  return config\n"
  )
  config = configs.read_config(str(path))
  assert config.stage == shapes16.get_config().stage
  assert config.mesh.fsdp == 64


KNOWN = (
  "base_64, deepfloyd_if, deepfloyd_if_train, imagen, own, shapes, shapes16, "
  "shapes256, shapes64, sr1024, sr256, t5_xxl"
)


@pytest.mark.parametrize(
  ("name", "said"),
  [
    *(
      (name, f"config {name!r} is unknown, expected a file or one of {KNOWN}")
      for name in ("shape", "", ":", "..", "~", "configs")
    ),
    *(
      (
        name,
        f"config {name!r} cannot be read, expected a file such as "
        "configs/shapes.py",
      )
      for name in ("a.py", "configs/a.py:b", "/a/b.py", "../train.py", "a/b")
    ),
    (
      "shapes:large",
      "config 'shapes:large' is unknown, expected no argument",
    ),
    (
      "imagen:nice",
      "imagen.py:nice is unknown, expected looks, fid",
    ),
  ],
)
def test_a_config_that_there_is_not(folder, name, said):
  with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
    configs.read_config(name)


@pytest.mark.parametrize(
  ("content", "said"),
  [
    ("x = (", r"is not Python, line 1: '\(' was never closed"),
    ("x = '\0'", "is not Python.*null bytes"),
    ("get_config = 3", r"has no get_config\(\), expected one"),
    ("def get_config(): return 3", "returned 3, expected a ConfigDict"),
    ("def get_config(a): return {}", "expected an argument, as .*:ARGUMENT"),
    ("def get_config(): raise ValueError('b')", "^b$"),
  ],
)
def test_a_file_that_is_no_config(folder, content, said):
  (folder / "bad.py").write_text(content)
  with pytest.raises(ValueError, match=said) as caught:
    configs.read_config("bad.py")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("content", "kind"),
  [
    ("int('x')", RuntimeError),
    ("def f(): int('x')\n\ndef get_config(): f()", RuntimeError),
    ("def get_config(): None.x", AttributeError),
    ("import nowhere", ImportError),
  ],
)
def test_a_mistake_in_its_code_is_no_users_mistake(folder, content, kind):
  """So that it is shown with its traceback."""
  (folder / "bad.py").write_text(content)
  with pytest.raises(kind) as caught:
    configs.read_config("bad.py")
  assert kind is not RuntimeError or isinstance(
    caught.value.__cause__, ValueError
  )


def test_what_may_be_overridden():
  config = shapes16.get_config()
  config.lock()
  configs.override(
    config,
    {
      "train.steps": 500,
      "data.seed": 3,  # one left at its default
      "optimizer.learning_rate": 1,
      "stage.net.channel_mult": [1, 2],
      "text.weights": None,
    },
  )
  assert config.optimizer.decay_steps == config.train.steps == 500
  assert (config.data.seed, config.text.weights) == (3, None)
  assert config.optimizer.learning_rate == 1.0
  assert config.stage.net.channel_mult == (1, 2)


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("stage.nett.embed_dim", 3, "no key 'stage.nett.embed_dim'"),
    ("stage.size.x", 3, "the config has no key 'stage.size.x'"),
    ("stage.net.channel_mult[0]", 3, "the config has no key 'stage.net"),
    ("", 3, "the config has no key ''"),
    ("a b", 3, "the config has no key 'a b'"),
    ("train.steps", "many", "config train.steps is 'many', expected int"),
    ("stage.net", 3, "config stage.net is 3, expected ConfigDict"),
  ],
)
def test_what_may_not_be_overridden(key, value, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    configs.override(shapes16.get_config(), {key: value})
