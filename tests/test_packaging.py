"""What the wheel and the sdist hold, and that the wheel samples alone."""

import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import setuptools

import imagen_jax

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = (
  "configs",
  "imagen_jax",
  "LICENSE",
  "MANIFEST.in",
  "README.md",
  "pyproject.toml",
  "setup.py",
)
SHIPPED = (".py", ".typed", ".model", ".safetensors", ".html", ".tsv")


def shipped_files(root: pathlib.Path) -> set[str]:
  """Returns what a wheel has of a checkout, by the names in the wheel."""
  folders = {"imagen_jax": "imagen_jax", "configs": "imagen_jax/configs"}
  return {
    f"{name}/{path.relative_to(root / folder).as_posix()}"
    for folder, name in folders.items()
    for path in (root / folder).rglob("*")
    if path.suffix in SHIPPED
  }


@pytest.fixture
def described(monkeypatch):
  """What setup.py states of the distribution."""
  found = {}
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(setuptools, "setup", found.update)
  runpy.run_path("setup.py")
  return found


def test_every_file_is_of_a_package_that_is_listed(described):
  """And only py.typed, weights, a page and suites are shipped as data."""
  names = set()
  for package in described["packages"]:
    home = package.replace(".", "/")
    place = pathlib.Path(described["package_dir"].get(package, home))
    for pattern in ("*.py", *described["package_data"].get(package, ())):
      found = [path.relative_to(place) for path in place.glob(pattern)]
      assert found, (package, pattern)
      names |= {f"{home}/{path.as_posix()}" for path in found}
  assert names == shipped_files(ROOT)
  assert described["version"] == imagen_jax.__version__


def test_importing_the_package_imports_no_jax():
  code = "import imagen_jax, sys; print('jax' in sys.modules)"
  run = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert (run.stdout, run.stderr) == ("False\n", "")


def build(kind: str, source: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
  """Builds a "wheel" or an "sdist" by the environment's own setuptools."""
  code = "import sys, setuptools.build_meta as b; b.build_%s(sys.argv[1])"
  words = [sys.executable, "-c", code % kind, str(out)]
  done = subprocess.run(words, cwd=source, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  (path,) = out.iterdir()
  return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The wheels of a checkout and of its sdist, and the sdist's folder."""
  here = tmp_path_factory.mktemp("packaging")
  tree = here / "tree"
  tree.mkdir()
  skip = shutil.ignore_patterns("__pycache__")
  for name in SOURCES:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=skip)
    else:
      shutil.copy(ROOT / name, tree)
  with tarfile.open(build("sdist", tree, here / "sdist")) as file:
    file.extractall(here / "unpacked", filter="data")
  (unpacked,) = (here / "unpacked").iterdir()
  return {
    "unpacked": unpacked,
    "checkout": build("wheel", tree, here / "of_checkout"),
    "sdist": build("wheel", unpacked, here / "of_sdist"),
  }


@pytest.mark.slow
@pytest.mark.parametrize("source", ["checkout", "sdist"])
def test_the_wheel_is_the_package_and_the_configs(built, source):
  with zipfile.ZipFile(built[source]) as file:
    names = {name for name in file.namelist() if ".dist-info/" not in name}
  assert names == shipped_files(ROOT)
  assert f"-{imagen_jax.__version__}-py3" in built[source].name
  assert not (built["unpacked"] / "tests").exists()


@pytest.mark.slow
def test_the_wheel_samples_where_there_is_nothing_else(built, tmp_path):
  with zipfile.ZipFile(built["sdist"]) as file:
    file.extractall(tmp_path / "site")
  (tmp_path / "empty").mkdir()
  args = ["--config=shapes", "--prompt=a red circle"]
  args += ["--config.shapes16.sampling.steps=4", "--steps=2"]
  run = subprocess.run(
    [sys.executable, "-m", "imagen_jax.sample", *args],
    cwd=tmp_path / "empty",
    env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    capture_output=True,
    text=True,
  )
  assert (run.returncode, run.stderr) == (0, ""), run.stderr
  written = list((tmp_path / "empty" / "samples").iterdir())
  (path,) = written
  assert path.match("a_red_circle-s0-steps2-0-????????.png")
