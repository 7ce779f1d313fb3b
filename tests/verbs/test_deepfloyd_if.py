"""DeepFloyd IF through the verbs: its config, small nets in its layout.

The folders are as the Hub's repositories: config.json and safetensors of both
nets and of T5, the vocabulary beside them.
"""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from imagen_jax import build
from imagen_jax.configs import deepfloyd_if
from imagen_jax.interop import diffusers, published, t5

ENCODER = dict(
  vocab_size=512,
  emb_dim=16,
  num_heads=2,
  num_encoder_layers=1,
  head_dim=8,
  mlp_dim=16,
  scan=False,
)
CASCADE = f"""
from imagen_jax.configs import deepfloyd_if

def get_config(step="ancestral_learned"):
  config = deepfloyd_if.get_config("m,m")
  config.text.encoder.update({ENCODER})
  config.if1.stage.size = 16  # a sixteenth of what takes a minute
  config.if2.stage.update(size=64, lowres_size=16)
  for name in ("if1", "if2"):
    config[name].sampling.step.kind = step
  return config
"""
SMALL = [f"--config.text.encoder.{key}={ENCODER[key]}" for key in ENCODER]


def random_state(shapes) -> dict[str, np.ndarray]:
  rng = np.random.RandomState(0)
  return {
    name: np.float32(rng.randn(*shape) / np.sqrt(np.prod(shape[1:]) + 10))
    for name, shape in shapes.items()
  }


@pytest.fixture(scope="module")
def home(tmp_path_factory, small_if):
  """Small nets where IF-I-M and IF-II-M would be, and a small T5."""
  home = tmp_path_factory.mktemp("hub")
  config = deepfloyd_if.get_config("m,m")
  config.text.encoder.update(ENCODER)
  second = small_if | {
    "class_embed_type": "timestep",
    "in_channels": 6,
    "only_cross_attention": True,
    "sample_size": 256,
  }
  first = small_if | {"sample_size": 64}
  for name, given in (("I", first), ("II", second)):
    folder = home / f"IF-{name}-M-v1.0" / "unet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(given))
  build.move_weights(config, str(home))
  words = build.text(config.text)
  key = jax.random.key(0)
  for name in ("if1", "if2"):
    built = build.stage(config[name].stage)
    like = jax.eval_shape(lambda built=built: build.init_net(built, words, key))
    file = f"{config[name].weights}/{diffusers.STEM}.safetensors"
    state = random_state(diffusers.diffusers_shapes(like))
    safetensors.numpy.save_file(state, file)
  t5.save_hugging_face(config.text.weights, words.init(key))
  vocabulary = home / "IF-I-M-v1.0" / "tokenizer" / "spiece.model"
  vocabulary.parent.mkdir()
  (home / "small.py").write_text(CASCADE)
  shutil.copy(published.resolve("weights/shapes.model"), vocabulary)
  return home


def read(folder) -> np.ndarray:
  (path,) = folder.glob("*.png")
  return np.asarray(Image.open(path))


def test_a_prompt_becomes_a_picture(run, home, tmp_path):
  """By its own settings but for fewer steps and smaller images."""
  given = [f"--weights={home}", "--steps=2", "--prompt=A red Star "]
  given += [f"--config={home}/small.py", f"--outdir={tmp_path}"]
  done = run("sample", *given)
  assert done.returncode == 0, done.stderr
  picture = read(tmp_path)
  assert picture.shape == (64, 64, 3)
  assert picture.std() > 10


@pytest.mark.slow
def test_capitals_do_not_matter_and_samplers_do(call, home):
  small = f"{home}/small.py"
  given = [f"--weights={home}", "--steps=3"]
  one = read(call(*given, "--prompt=A red Star ", config=small))
  given += ["--prompt=a red star"]
  same = read(call(*given, config=small, outdir="same"))
  np.testing.assert_array_equal(same, one)
  solver = f"{small}:dpm_solver++"
  other = read(call(*given, config=solver, outdir="other"))
  assert np.abs(other.astype(int) - one).max() > 2


@pytest.fixture(scope="module")
def trained(run, home, here):
  """A run of two steps that started from the weights, and what it printed."""
  unet = f"{home}/IF-I-M-v1.0/unet"
  done = run(
    "train",
    "--config=configs/deepfloyd_if_train.py:if1,m",
    f"--workdir={here}/tuned",
    f"--config.stage.net.folder={unet}",
    f"--config.train.start_from={unet}",
    f"--config.text.weights={home}/IF-I-M-v1.0/text_encoder",
    f"--config.text.vocabulary={home}/IF-I-M-v1.0/tokenizer/spiece.model",
    "--config.data.name=captioned_shapes/tiny",
    f"--config.data.data_dir={here}/data",
    "--config.data.batch_size=2",
    "--config.mesh.fsdp=1",
    "--config.optimizer.warmup_steps=0",
    "--config.sampling.timesteps=fast27",
    "--config.train.steps=2",
    "--config.train.log_every=1",
    "--config.train.num_samples=1",
    *SMALL,
  )
  assert (done.returncode, done.stderr) == (0, "")
  return here / "tuned"


@pytest.mark.slow
def test_a_run_starts_from_the_weights(trained, home, small_if):
  start, ema = (
    weights_of(f"{home}/IF-I-M-v1.0/unet", small_if),
    weights_of(trained, small_if),
  )
  moved = [np.abs(a - b).max() for a, b in zip(start, ema, strict=True)]
  assert 0 < max(moved) < 1e-3
  assert (trained / "samples" / "00000002.png").exists()


@pytest.mark.slow
def test_what_was_trained_goes_back_to_diffusers(trained, home, run, small_if):
  """The same numbers."""
  done = run(
    "export",
    "--config=configs/deepfloyd_if_train.py:if1,m",
    f"--config.stage.net.folder={home}/IF-I-M-v1.0/unet",
    f"--workdir={trained}",
    f"--output={trained}/unet",
    "--diffusers",
    *SMALL,
  )
  assert (done.returncode, done.stderr) == (0, "")
  for a, b in zip(
    weights_of(trained, small_if),
    weights_of(trained / "unet", small_if),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def weights_of(path, small_if) -> list[np.ndarray]:
  net = diffusers.unet(small_if)
  built = build.Stage(net, 64)
  init = lambda: built.init(jax.random.key(0), text_length=77, text_dim=16)
  params = published.load_net(str(path), jax.eval_shape(init))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
