"""The notebook of launch/: that it runs, and shows what it promises."""

import base64
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import types

import jax
import numpy as np
import pytest
from PIL import Image

import imagen_jax
from imagen_jax import build
from imagen_jax.build import configs

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "launch" / "colab_sampling.ipynb"
SMALL = "STEPS = 2\nBATCH = 2\n"
SEEN = (  # a cell's first words, the images it shows
  ("imagen = imagen_jax.load", ["png"]),
  ("EVERY", ["png"]),
  ("large = [", ["gif"]),
  ("WEIGHTS", ["png"]),
  ("HIGH", ["png"]),
  ("rows = [", ["png"]),
  ("IMAGE_PATH", ["png"]),
  ("last = ", ["png"]),
)


def read() -> dict:
  return json.loads(NOTEBOOK.read_text("utf-8"))


def source(begin: str) -> str:
  """The code of the one cell that begins with this."""
  (found,) = (
    text
    for cell in read()["cells"]
    if cell["cell_type"] == "code"
    and (text := "".join(cell["source"])).startswith(begin)
  )
  return found


def executed(folder: pathlib.Path) -> dict:
  """The notebook run in a folder, of few steps and small batches."""
  import nbclient
  import nbformat

  book = nbformat.reads(NOTEBOOK.read_text("utf-8"), as_version=4)
  (settings,) = (
    i
    for i, cell in enumerate(book.cells)
    if "parameters" in cell.metadata.get("tags", [])
  )
  book.cells.insert(settings + 1, nbformat.v4.new_code_cell(SMALL))
  client = nbclient.NotebookClient(
    book, timeout=900, resources={"metadata": {"path": str(folder)}}
  )
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  client.execute(env=os.environ | {"PYTHONPATH": path, **ONE_DEVICE})
  return book


ONE_DEVICE = {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def outputs(folder):
  """Each code cell's outputs, by its source; nbclient raises a cell's error."""
  return {
    cell.source: cell.outputs
    for cell in executed(folder).cells
    if cell.cell_type == "code"
  }


def shown(outputs, begin: str) -> list[Image.Image]:
  """The images that a cell displayed, in order."""
  found = []
  for output in outputs[source(begin)]:
    data = output.get("data", {})
    image = data.get("image/png") or data.get("image/gif")
    if image:
      found.append(Image.open(io.BytesIO(base64.b64decode(image))))
  return found


def printed(outputs, begin: str) -> str:
  """What a cell printed."""
  return "".join(
    output.text
    for output in outputs[source(begin)]
    if output.output_type == "stream" and output.name == "stdout"
  )


@pytest.mark.parametrize(("begin", "formats"), SEEN)
def test_images_are_shown_where_promised(outputs, begin, formats):
  images = shown(outputs, begin)
  assert [image.format.lower() for image in images] == formats
  for image in images:
    assert np.asarray(image.convert("RGB")).std() > 10


def test_nothing_is_shown_elsewhere(outputs):
  begins = tuple(begin for begin, _ in SEEN)
  for text, found in outputs.items():
    if not text.startswith(begins):
      assert all("data" not in output for output in found), text
    errors = [out.text for out in found if out.get("name") == "stderr"]
    assert errors == [], text


def test_the_animation_has_every_frame(outputs):
  """Of two steps the callback sees both, in each of three stages."""
  (animation,) = shown(outputs, "large = [")
  assert animation.n_frames == 6
  assert animation.size == (256, 256)


def test_an_image_alone_is_that_of_its_batch(outputs, folder):
  text = printed(outputs, "last = ")
  difference = re.search(r"image 1 alone differs by at most (\S+) in", text)
  assert float(difference[1]) < 1 / 255
  assert len(list((folder / "samples").glob("*.png"))) == 2


def test_columns_differ(outputs):
  """Guidance weights, thresholds, stages and seeds change the images."""
  for begin, columns in (("WEIGHTS", 4), ("HIGH", 3), ("last = ", 3)):
    (sheet,) = shown(outputs, begin)
    each = np.split(np.asarray(sheet, np.float32)[20:], columns, axis=1)
    for one, two in itertools.pairwise(each):
      assert np.abs(one - two).max() > 20, begin


def test_what_git_has_is_stripped():
  """No outputs, counts or metadata of a run; every cell has its text."""
  book = read()
  assert book["nbformat"] == 4
  assert set(book["metadata"]) == {"colab", "kernelspec", "language_info"}
  assert book["metadata"]["colab"]["provenance"] == []
  before = None
  for cell in book["cells"]:
    if cell["cell_type"] == "code":
      assert (cell["outputs"], cell["execution_count"]) == ([], None)
      assert set(cell["metadata"]) <= {"tags"}
      assert before == "markdown", cell["source"]
    before = cell["cell_type"]


def test_versions_that_it_names_are_those_of_launch():
  text = "".join(read()["cells"][0]["source"])
  for file in ("requirements-lock.txt", "launch/colab-constraints.txt"):
    (line,) = (line for line in text.splitlines() if file in line)
    pins = (ROOT / file).read_text().splitlines()
    (jax_pin,) = (pin for pin in pins if pin.startswith("jax=="))
    assert f"| {jax_pin.removeprefix('jax==')} |" in line


@pytest.mark.parametrize(
  ("jax_version", "programs", "repository", "wanted"),
  [
    ("0.7.2", ["nvidia-smi"], "a.whl", "a.whl"),
    ("0.6.9", ["nvidia-smi"], "a.whl", "a.whl[cuda]"),
    ("0.10.2.dev1", [], "git+https://x/y", "imagen_jax @ git+https://x/y"),
    (None, ["nvidia-smi"], "https://x/y", "imagen_jax[cuda] @ https://x/y"),
    (None, [], "folder", "folder[tpu]"),
    ("0.7.2", [], "", ValueError),
  ],
)
def test_install(monkeypatch, jax_version, programs, repository, wanted):
  """Plugins of a GPU or TPU are installed only where JAX is replaced."""
  missing = importlib.metadata.PackageNotFoundError

  def version(name):
    if jax_version is None:
      raise missing(name)
    return jax_version

  calls = []
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(importlib.metadata, "version", version)
  monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/accel0"])
  monkeypatch.setattr(
    shutil, "which", lambda name: name if name in programs else None
  )
  monkeypatch.setattr(subprocess, "run", lambda call, check: calls.append(call))
  cell = source("# @title Install")
  cell = cell.replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
  if wanted is ValueError:
    with pytest.raises(ValueError, match="REPOSITORY is empty, expected a whe"):
      exec(cell, {})
    assert calls == []
  else:
    exec(cell, {})
    assert [call[-1] for call in calls] == [wanted]


def test_install_has_the_bound_of_setup():
  names = {}
  exec(source("# @title Install"), names)
  bound = ".".join(map(str, names["OLDEST_JAX"]))
  assert f'"jax>={bound}"' in (ROOT / "setup.py").read_text()


def test_install_leaves_what_is_there(monkeypatch):
  monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip"))
  exec(source("# @title Install"), {})


def test_sizes_of_deepfloyd_are_those_of_the_nets(monkeypatch, capsys):
  """Those of the published manifests and of our T5-XXL."""
  names = {}
  exec(source("PARAMETERS"), names)
  for stage, number in (("if1", "I"), ("if2", "II")):
    for size, count in names["PARAMETERS"][stage].items():
      path = f"tests/interop/deepfloyd_if/IF-{number}-{size.upper()}.json"
      shapes = json.loads((ROOT / path).read_text())["params"]
      assert count == sum(math.prod(shape) for shape in shapes.values())
  config = configs.read_config("deepfloyd_if:m,m")
  for int8 in (True, False):
    configs.override(config, {"text.int8": int8})
    leaves = jax.tree.leaves(build.text(config.text).shapes())
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 1e9
    assert names["largest_part"]("m,m", int8) == pytest.approx(size, rel=0.01)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 8
  assert lines[3].endswith("17.2 GB: A100, 40 GB")


def test_deepfloyd_is_behind_one_switch(monkeypatch):
  """Off, its cell does nothing; on, it asks for what the interface takes."""
  cell, asked = source("# @title DeepFloyd"), {}
  exec(cell, {})

  def load(*args, **kwargs):
    asked["load"] = inspect.signature(imagen_jax.load).bind(*args, **kwargs)
    return types.SimpleNamespace(sample=sample)

  def sample(*args, **kwargs):
    bind = inspect.signature(imagen_jax.Imagen.sample).bind
    asked["sample"] = bind(None, *args, **kwargs)

  monkeypatch.delenv("HF_TOKEN", raising=False)
  names = {
    "STEPS": 2, "SEED": 0, "os": os, "display": lambda found: None,
    "getpass": lambda prompt: "token",
    "imagen_jax": types.SimpleNamespace(load=load),
  }  # fmt: skip
  exec(cell.replace("RUN_DEEPFLOYD = False", "RUN_DEEPFLOYD = True"), names)
  assert os.environ["HF_TOKEN"] == "token"
  given = asked["load"].arguments
  config = configs.read_config(given["config"])
  configs.override(config, given["overrides"])
  assert build.text(config.text).int8
  assert given["offload"]
  assert asked["sample"].arguments["steps"] == 2
