"""All files that a config names are looked at before any work."""

import pytest

from imagen_jax import imagen
from imagen_jax.build.configs import read_config
from imagen_jax.interop import published


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
  """Nothing may be read into memory."""

  def fail(*_, **__):
    raise AssertionError("weights were read")

  monkeypatch.setattr(published, "load_text", fail)
  monkeypatch.setattr(published, "load_net", fail)


@pytest.fixture(params=["missing", "damaged", "of another net"])
def bad(request, tmp_path):
  """A path of weights that cannot be used."""
  path = tmp_path / "bad.safetensors"
  if request.param == "damaged":
    path.write_bytes(b"version https://example.org/spec/v1")
  if request.param == "of another net":
    path = published.resolve("package://weights/shapes256.safetensors")
  return str(path)


def said(path):
  return f"weights {path} (cannot be|are damaged|are not those of the config)"


def test_weights_of_the_text_encoder(bad):
  with pytest.raises(ValueError, match=said(bad)):
    imagen.load("shapes", overrides={"text.weights": bad})
  with pytest.raises(ValueError, match=said(bad)):
    imagen.load("shapes", weights={"text": bad})


def test_a_vocabulary(tmp_path):
  for path in ("nowhere.model", str(tmp_path), "package://weights/a.model"):
    with pytest.raises(ValueError, match=f"{path} (cannot be read|is no file)"):
      imagen.load("shapes", overrides={"text.vocabulary": path})


def test_weights_of_a_stage(bad):
  with pytest.raises(ValueError, match=said(bad)):
    imagen.load("shapes", weights={"shapes64": bad})
  cascade = imagen.load("shapes", overrides={"shapes64.weights": bad})
  with pytest.raises(ValueError, match=said(bad)):
    cascade.sample("a red star", progress=False)
  # A stage that does not run needs none.
  rows = imagen.image_rows(1)
  assert cascade.request(["a star"], rows, stages=(None, "shapes16"))


@pytest.mark.parametrize("key", ["text.weights", "train.start_from"])
def test_a_training_run(tmp_path, bad, key):
  config = read_config("shapes16")
  with pytest.raises(ValueError, match=said(bad)):
    imagen.train(config, tmp_path / "run", overrides={key: bad})
  with pytest.raises(ValueError, match="is not the one that weights"):
    overrides = {"text.vocabulary": str(other_vocabulary(tmp_path))}
    imagen.train(config, tmp_path / "run", overrides=overrides)
  assert not (tmp_path / "run").exists()


def other_vocabulary(folder):
  """The demo's with a field more, which its parser skips."""
  path = folder / "other.model"
  shipped = published.resolve("package://weights/shapes.model").read_bytes()
  path.write_bytes(shipped + bytes([0xC0, 0x3E, 0x01]))  # field 1000 is 1
  return path
