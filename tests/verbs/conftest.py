"""Tiny configs, random weights, and ways to call the verbs."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from imagen_jax import build, sample
from imagen_jax.cascade import filled
from imagen_jax.cli import program
from imagen_jax.imagen import Imagen
from imagen_jax.interop import weights

ROOT = pathlib.Path(__file__).parents[2]
# The verbs that tests start find no TensorFlow, even where it is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
  filter(None, (str(ROOT / "tests/verbs/refused"), os.getenv("PYTHONPATH")))
)
CONFIG = """
from ml_collections import ConfigDict

HERE = {here!r}


def sampling(step):
  return dict(
    steps=3,
    guidance=1.5,
    step=dict(kind=step),
    threshold=dict(kind="dynamic"),
  )


def get_config():
  base = dict(
    kind="UNet",
    image_size=8,
    embed_dim=8,
    channel_mult=(1,),
    num_res_blocks=1,
    attn_resolutions=(8,),
    text_cross_attn_res=(8,),
    per_head_channels=8,
    text_width=16,
    norm_groups=4,
  )
  block = dict(channels=8, num_res_blocks=1, num_attention_heads=2)
  larger = dict(
    kind="EfficientUNet",
    blocks=(block, dict(block, text_cross_attention=True)),
    embed_dim=8,
    text_width=16,
    norm_groups=4,
  )
  encoder = dict(
    vocab_size=512,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    head_dim=8,
    mlp_dim=16,
  )
  return ConfigDict(
    dict(
      stages=("base", "larger"),
      base=dict(
        stage=dict(size=8, net=base, prediction="x"),
        sampling=sampling("ancestral"),
        weights=HERE + "/base.safetensors",
      ),
      larger=dict(
        stage=dict(size=16, lowres_size=8, net=larger, prediction="x"),
        sampling=sampling("ddim"),
        weights=HERE + "/larger.safetensors",
      ),
      text=dict(
        encoder=encoder,
        vocabulary="weights/shapes.model",
        length=16,
        weights=HERE + "/text.safetensors",
      ),
      batch_size=4,
    )
  )
"""

STAGE_CONFIG = """
import pathlib
from imagen_jax.configs import shapes16

def get_config():
  config = shapes16.get_config()
  config.text.encoder.update(
    vocab_size=512, emb_dim=16, num_heads=2, num_encoder_layers=1, head_dim=8,
    mlp_dim=16,
  )
  config.text.weights = {text!r}
  config.stage.size = 8
  config.stage.net.update(
    image_size=8, embed_dim=8, channel_mult=(1,), num_res_blocks=1,
    attn_resolutions=(8,), text_cross_attn_res=(8,), per_head_channels=8,
    text_width=16, norm_groups=4,
  )
  config.data.name = "captioned_shapes/tiny"
  config.data.data_dir = str(pathlib.Path(__file__).with_name("data"))
  config.data.batch_size = 8
  config.optimizer.update(warmup_steps=2, decay_steps=1_000_000)
  config.train.update(
    log_every=1, sample_every=10, checkpoint_every=5, num_samples=4
  )
  config.sampling.steps = 2
  config.weights = "weights/tiny.safetensors"
  return config
"""
STAGE_CASCADE = """
import pathlib, runpy
from ml_collections import ConfigDict

HERE = pathlib.Path(__file__).parent

def get_config():
  stage = runpy.run_path(str(HERE / "tiny.py"))["get_config"]()
  stage.weights = str(HERE / "tiny.safetensors")
  return ConfigDict(
    dict(
      stages=("tiny",),
      tiny={key: stage[key] for key in ("stage", "sampling", "weights")},
      text=stage.text,
      batch_size=2,
    )
  )
"""

# Calls a verb with each of many arguments, JAX imported once.
CALLS = """
import importlib, json, sys
from imagen_jax.cli import program

verb = importlib.import_module("imagen_jax." + sys.argv[1])
for args in json.loads(sys.argv[2]):
  try:
    with program.stores_by_gcsfs(), program.as_exit_codes():
      verb.main(args)
  except SystemExit as end:
    print("exit", end.code)
"""


@pytest.fixture(scope="session")
def of_two() -> Callable[[], list[dict[str, str]]]:
  """Gives the variables of two processes of a job, each time of another."""

  def variables() -> list[dict[str, str]]:
    with contextlib.closing(socket.socket()) as s:
      s.bind(("localhost", 0))
      address = f"localhost:{s.getsockname()[1]}"
    job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [job | {"JAX_PROCESS_ID": str(i)} for i in range(2)]

  return variables


def random_like(tree, seed: int):
  """Random weights, the zero-initialised ones too."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape), tree)


@pytest.fixture(scope="session")
def config(tmp_path_factory):
  """The config's file, its weights beside it."""
  here = tmp_path_factory.mktemp("cascade")
  path = here / "tiny.py"
  path.write_text(CONFIG.format(here=str(here)))
  config = runpy.run_path(str(path))["get_config"]()
  cascade, text = build.cascade(config), build.text(config.text)
  key = jax.random.key(0)
  trees = {"text": jax.eval_shape(lambda: text.init(key))}
  for name, stage in zip(cascade.names, cascade.stages, strict=True):
    trees[name] = jax.eval_shape(lambda s=stage: build.init_net(s, text, key))
  for seed, (name, tree) in enumerate(trees.items()):
    file = here / f"{name}.safetensors"
    weights.save_weights(file, random_like(tree, seed))
  return path


@pytest.fixture
def call(config, tmp_path):
  """Calls the verb in this process; returns the folder that it wrote into."""

  def call(
    *args: str, outdir: str = "out", config: str | os.PathLike = config
  ) -> pathlib.Path:
    folder = tmp_path / outdir
    sample.main([f"--config={config}", f"--outdir={folder}", *args])
    return folder

  return call


def python(*args: str) -> subprocess.CompletedProcess:
  """Python in a process of its own, on one device as a person has it."""
  return subprocess.run(
    [sys.executable, *args],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
    capture_output=True,
    encoding="utf-8",
  )


@pytest.fixture(scope="session")
def run():
  """Runs a verb as a person does: run("sample", "--config=...")."""
  return lambda verb, *args: python("-m", f"imagen_jax.{verb}", *args)


@pytest.fixture(scope="session")
def run_each():
  """Runs a verb once for each list of arguments, all in one process.

  Every one that fails prints "exit CODE" on standard output.
  """
  return lambda verb, calls: python("-c", CALLS, verb, json.dumps(calls))


@pytest.fixture(scope="session")
def state_of():
  """state_of(workdir, step): all arrays of a checkpoint, whole."""

  def state_of(workdir: pathlib.Path, step: int):
    path = workdir / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
      tree = checkpointer.metadata(path).item_metadata.tree
      whole = ocp.RestoreArgs(restore_type=np.ndarray)
      whole = jax.tree.map(lambda _: whole, tree)
      return checkpointer.restore(path, restore_args=whole)

  return state_of


@pytest.fixture(scope="session")
def here(tmp_path_factory, config):
  """A folder with tiny.py, to train on 8x8 images, and a cascade of that."""
  from imagen_jax.data.source import load_source  # TFDS, for this alone

  here = tmp_path_factory.mktemp("stage")
  text = str(config.with_name("text.safetensors"))
  (here / "tiny.py").write_text(STAGE_CONFIG.format(text=text))
  (here / "cascade.py").write_text(STAGE_CASCADE)
  load_source("captioned_shapes/tiny", "train", here / "data")
  return here


@pytest.fixture(scope="session")
def evaluate():
  """Calls the verb evaluate; what it printed, and its exit code."""

  def call(*args: str) -> tuple[str, str, int | None]:
    from imagen_jax import evaluate

    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      try:
        with program.as_exit_codes():
          evaluate.main([*args])
      except SystemExit as end:
        code = end.code
    return out.getvalue(), err.getvalue(), code

  return call


@pytest.fixture
def requests(monkeypatch):
  """Makes nets give noise without being compiled; collects the requests."""
  found = []

  def noise(imagen, batches, keep_text):
    del keep_text
    request = batches.request
    found.append(request)
    parts = [imagen.names[i] for i in request.stages]
    parts += ["text"] if imagen.reads_text else []
    identities = {part: imagen._parts.identity(part) for part in parts}
    settings = imagen._made_with(request, identities)
    size = imagen.cascade.stages[request.stages[-1]].size
    for batch in itertools.chain(*batches.rounds()):
      rows = filled(batch, batches.size)
      draw = lambda row: np.random.default_rng(row.index).uniform(
        -1, 1, (size, size, 3)
      )
      made = np.stack([draw(rows[i]) for i in batches.held])
      yield batch, {parts[-1]: made}, settings

  monkeypatch.setattr(Imagen, "_batches", noise)
  return found


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
  """A prepared dataset without scenes: 12 images that are not square."""
  write_dataset = runpy.run_path(ROOT / "tests/data/datasets.py")[
    "write_dataset"
  ]
  rng = np.random.default_rng(0)

  def image():
    file, size = io.BytesIO(), (20, 24, 3)
    Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(
      file, "png"
    )
    return file.getvalue()

  records = [
    {"image": image(), "caption": f"photo {i}".encode()} for i in range(12)
  ]
  return write_dataset(tmp_path_factory.mktemp("photos"), records)
