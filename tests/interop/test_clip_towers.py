"""Both towers of CLIP in Hugging Face's files, against transformers."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from etils import epath

from imagen_jax.evals.clip_features import preprocess
from imagen_jax.interop import clip
from imagen_jax.nets.clip_image import ClipImageFeatures
from imagen_jax.nets.clip_text import ClipTextFeatures

PATH = pathlib.Path(__file__).parents[1] / "oracles/clip_towers.safetensors"


@pytest.fixture(scope="module")
def arrays():
  return safetensors.numpy.load_file(PATH)


@pytest.fixture
def folder(arrays, tmp_path):
  """folder(change, vision, **config) -> a CLIP as it is published, changed."""
  with safetensors.safe_open(PATH, "numpy") as file:
    published = json.loads(file.metadata()["config"])

  def save(change=lambda state: state, vision=None, **config):
    state = {
      name.removeprefix("state/"): value
      for name, value in arrays.items()
      if name.startswith("state/")
    }
    safetensors.numpy.save_file(change(state), tmp_path / "model.safetensors")
    config["vision_config"] = published["vision_config"] | (vision or {})
    (tmp_path / "config.json").write_text(json.dumps(published | config))
    return epath.Path(tmp_path)

  return save


def test_features_equal_transformers(arrays, folder):
  where = folder()
  nets = clip.towers(where)
  params = clip.load_towers(where, nets.shapes)
  text, image = jax.jit(nets.text.apply), jax.jit(nets.image.apply)
  ids, mask = arrays["ids"], arrays["mask"]
  images = image({"params": params["image"]}, arrays["pixels"])
  np.testing.assert_allclose(images, arrays["images"], rtol=0, atol=2e-5)
  # What follows the end of a text changes nothing.
  for given in (ids, np.where(mask, ids, 3)):
    texts = text({"params": params["text"]}, given, mask)
    np.testing.assert_allclose(texts, arrays["texts"], rtol=0, atol=2e-5)
  assert texts.dtype == images.dtype == np.float32


def test_images_are_prepared_as_by_transformers(arrays):
  found = preprocess(arrays["photo"][None], 23)[0]
  np.testing.assert_allclose(found, arrays["prepared"], rtol=0, atol=1e-6)
  wide = preprocess(arrays["photo"].swapaxes(0, 1)[None], 23)
  assert wide.shape == (1, 23, 23, 3)


@pytest.mark.parametrize(
  ("width", "heads", "patch", "size", "positions", "name"),
  [
    (768, 12, 32, 224, 50, "ViT-B/32"),
    (768, 12, 16, 224, 197, "ViT-B/16"),
    (1024, 16, 14, 224, 257, "ViT-L/14"),
    (1024, 16, 14, 336, 577, "ViT-L/14@336px"),
    (64, 2, 8, 16, 5, "ViT-64/8@16px"),
  ],
)
def test_published_sizes(width, heads, patch, size, positions, name):
  nets = clip.Towers(
    ClipTextFeatures(49408, 512, 8, 1, 2048),
    ClipImageFeatures(size, patch, width, heads, 1, 4 * width),
  )
  assert nets.name == name
  shapes = nets.shapes["image"]
  assert shapes["position_embedder"]["embedding"].shape == (positions, width)


def without(name):
  return {"change": lambda state: {n: x for n, x in state.items() if n != name}}


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"model_type": "siglip"}, "have no config.json of CLIP beside them"),
    (without("visual_projection.weight"), "have no matrix visual_projection.w"),
    (without("text_projection.weight"), "they lack text_projection.weight"),
    (without("vision_model.pre_layrnorm.bias"), "lack vision_model.pre_layrno"),
    ({"vision": {"patch_size": 4}}, "patch_embedding.weight as float32"),
    ({"vision": {"num_hidden_layers": 1}}, "the unknown vision_model.encoder"),
    ({"vision": {"num_attention_heads": 5}}, "emb_dim is 32, expected a mult"),
    ({"vision": {"patch_size": 24}}, "patch_size is 24, expected at most"),
    ({"vision": {"num_channels": 4}}, "num_channels 4, expected 3, as OpenAI"),
    ({"vision": {"hidden_act": "gelu"}}, "hidden_act 'gelu', expected 'quick"),
  ],
)
def test_another_net_is_refused_before_it_is_read(folder, changes, said):
  where = folder(**changes)
  with pytest.raises(ValueError, match=said) as caught:
    clip.towers(where)
  assert str(where) in str(caught.value)


def test_a_missing_folder(tmp_path):
  with pytest.raises(ValueError, match="none are no folder, expected one with"):
    clip.towers(epath.Path(tmp_path / "none"))
