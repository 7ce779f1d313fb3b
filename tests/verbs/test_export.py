"""The verb export: a text encoder in others' layouts, and bad input.

A run's weights are exported in test_end_to_end.py.
"""

import hashlib
import re
import runpy

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy

from imagen_jax import build, export
from imagen_jax.build.configs import read_config
from imagen_jax.interop import published, t5

NEEDED = "--output and one of --workdir and --text are needed, see --help"
CALLS = (
  ["--text=hugging_face", "--output={out}/hub"],
  ["--text=t5x", "--output={out}/t5x"],
  ["--text=t5x", "--output={out}/t5x"],
  ["--text=t5x", "--output={out}/int8", "--config.text.int8=True"],
  ["--text=t5x"],
  ["--output={out}/no"],
  ["--text=t5x", "--workdir=run", "--output={out}/no"],
  ["--text=t5x", "--output={out}/no", "--config.text.weights=nowhere"],
  ["--workdir=run", "--output={out}/e.bin"],
  ["--workdir=run", "--output={out}/e/"],
  ["--workdir=run", "--output={out}"],
  ["--workdir=run", "--output=package://weights/e.safetensors"],
  ["--text=t5x", "--output=hf://a/b/e"],
  ["--text=hugging_face", "--output={out}/hub/model.safetensors"],
)
SAID = (
  "{out}/t5x has a checkpoint, expected a new folder",
  "config text.int8 is True, expected False: the layouts hold floats",
  NEEDED,
  NEEDED,
  NEEDED,
  "weights nowhere cannot be read: No such file or directory",
  "output {out}/e.bin has the wrong ending, expected .safetensors",
  "output {out}/e/ is a folder, expected a file such as "
  "{out}/e/output.safetensors",
  "output {out} is a folder, expected a file such as {out}/output.safetensors",
  "output package://weights/e.safetensors can only be read, expected a path of "
  "a disk or gs://",
  "output hf://a/b/e can only be read, expected a path of a disk or gs://",
  "output {out}/hub/model.safetensors is a file, expected a folder",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def done(config, out, run_each):
  calls = [[arg.format(out=out) for arg in call] for call in CALLS]
  return run_each("export", [[f"--config={config}", *call] for call in calls])


def fingerprint() -> str:
  """The SHA-256 of the vocabulary of all configs here."""
  vocabulary = published.resolve("package://weights/shapes.model")
  return hashlib.sha256(vocabulary.read_bytes()).hexdigest()


def test_it_tells_what_it_wrote_and_what_it_cannot(done, out):
  digest = fingerprint()
  lines = [line for line in done.stdout.splitlines() if line != "exit None"]
  for line, name, layout in zip(lines, ("hub", "t5x"), ("hugging_face", "t5x")):
    said = rf"{out}/{name}: \d\.\d\d MB, text encoder as {layout}, "
    said += f"vocabulary {digest[:16]}..."
    assert re.fullmatch(said, line), line
  assert lines[2:] == ["exit 1"] * len(SAID)
  said = [line for line in done.stderr.splitlines() if "error: " in line]
  assert said == ["error: " + line.format(out=out) for line in SAID]
  assert sorted(path.name for path in out.iterdir()) == ["hub", "t5x"]


@pytest.mark.parametrize("name", ["hub", "t5x"])
def test_it_is_read_back_as_it_was(done, config, out, name):
  config = runpy.run_path(str(config))["get_config"]()
  expected = build.load_text(build.text(config.text))
  config.text.weights = str(out / name)
  found = build.load_text(build.text(config.text))
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert t5.recorded_vocabulary(out / name) == fingerprint()


def test_the_names_are_those_of_the_layout(done, config, out):
  names = safetensors.numpy.load_file(out / "hub" / "model.safetensors")
  assert "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in names
  assert (out / "hub" / "config.json").exists()
  data = (out / "t5x" / "checkpoint").read_bytes()
  target = flax.serialization.msgpack_restore(data)["optimizer"]["target"]
  assert target.keys() == {"encoder", "token_embedder"}


def test_only_t5_has_layouts():
  text = build.text(read_config("bert").text)
  with pytest.raises(ValueError, match="--text=t5x is a layout of T5, expecte"):
    export.export_text(text, "t5x", "nowhere")
