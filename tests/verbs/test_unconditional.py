"""text=None: nets that are trained and sampled without text."""

import json
import runpy

import numpy as np
import pytest
from ml_collections import ConfigDict

import imagen_jax
from imagen_jax import export, sample
from imagen_jax.interop import published


@pytest.fixture(scope="module")
def trained(here, tmp_path_factory):
  """The config of a stage without text, and the workdir of three steps."""
  config = runpy.run_path(str(here / "tiny.py"))["get_config"]()
  with config.unlocked():
    config.text = None
  config.sampling.guidance = 1.0
  config.train.update(steps=3, sample_every=3, checkpoint_every=3)
  workdir = tmp_path_factory.mktemp("run")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(published, "load_text", lambda *_: {})  # T5 is not read
    patch.setattr(published, "Tokenizer", None)
    imagen_jax.train(config, workdir)
  return config, workdir


@pytest.fixture(scope="module")
def cascade(trained):
  config, workdir = trained
  return ConfigDict(
    dict(
      stages=("tiny",),
      tiny=dict(
        stage=config.stage, sampling=config.sampling, weights=str(workdir)
      ),
      text=None,
      batch_size=2,
    )
  )


def test_training_writes_what_it_always_does(trained):
  config, workdir = trained
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(line)["loss"] for line in lines]
  assert len(losses) == 3 and np.isfinite(losses).all()
  assert (workdir / "samples" / "00000003.png").exists()
  again = imagen_jax.train(config, workdir)  # its config is its own
  assert again.step == 3


def test_images_without_prompts(cascade, tmp_path):
  imagen = imagen_jax.load(cascade)
  samples = imagen.sample(None, num_images=4, progress=False)
  assert samples.arrays.shape == (4, 8, 8, 3)
  assert len(np.unique(samples.arrays[:, 0, 0, 0])) == 4
  assert samples.prompts == (None,) * 4
  for given in ("a red star", ["a red star"]):
    with pytest.raises(ValueError, match="^the cascade has no text encoder"):
      imagen.sample(given)
    with pytest.raises(ValueError, match="^the cascade has no text encoder"):
      imagen.encode(given)
  with pytest.raises(ValueError, match="^guidance is 2.0 without prompts"):
    imagen.sample(None, guidance=2.0)
  paths = samples.save(tmp_path)
  assert [path.name[:5] for path in paths] == [
    "s0-0-",
    "s0-1-",
    "s0-2-",
    "s0-3-",
  ]


def test_the_verbs(cascade, trained, tmp_path, capsys):
  path = tmp_path / "cascade.py"
  path.write_text(
    "from ml_collections import ConfigDict\n"
    f"get_config = lambda: ConfigDict({cascade.to_dict()!r})\n"
  )
  sample.main([f"--config={path}", "--num_images=2", f"--outdir={tmp_path}/o"])
  assert len(list((tmp_path / "o").glob("s0-?-*.png"))) == 2
  stage = tmp_path / "stage.py"
  stage.write_text(
    "from ml_collections import ConfigDict\n"
    f"get_config = lambda: ConfigDict({trained[0].to_dict()!r})\n"
  )
  output = tmp_path / "net.safetensors"
  export.main(
    [f"--config={stage}", f"--workdir={trained[1]}", f"--output={output}"]
  )
  assert output.exists()
  with pytest.raises(ValueError, match="^config text is None, expected a text"):
    export.main(
      [f"--config={stage}", "--text=t5x", f"--output={tmp_path}/text"]
    )


def test_guidance_is_refused_in_configs(cascade, trained):
  with pytest.raises(
    ValueError, match="^stage tiny: sampling.guidance is 3.0,"
  ):
    imagen_jax.load(cascade, overrides={"tiny.sampling.guidance": 3.0})
  config, workdir = trained
  with pytest.raises(ValueError, match="^sampling.guidance is 3.0, expected 1"):
    imagen_jax.train(config, workdir, overrides={"sampling.guidance": 3.0})
