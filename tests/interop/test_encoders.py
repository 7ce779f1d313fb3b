"""BERT and CLIP in Hugging Face's files, against transformers' fixtures."""

import json
import pathlib
import types

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from absl import logging
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from imagen_jax import build
from imagen_jax.interop import bert, clip, encoders, published
from imagen_jax.parallel import mesh
from imagen_jax.parallel.sharding import Placement

ORACLES = pathlib.Path(__file__).parents[1] / "oracles"
FILES = {"bert": "bert", "clip": "clip_text"}
LENGTH = 20
KINDS = pytest.mark.parametrize("kind", FILES)


@pytest.fixture(scope="module")
def fixtures():
  """{kind: (arrays, state dict, config.json)} of transformers."""
  found = {}
  for kind, name in FILES.items():
    path = ORACLES / f"{name}.safetensors"
    arrays = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
      config = json.loads(file.metadata()["config"])
    state = {
      n.removeprefix("state/"): x
      for n, x in arrays.items()
      if n.startswith("state/")
    }
    found[kind] = arrays, state, config
  return found


@pytest.fixture
def saved(tmp_path, fixtures):
  """saved(kind, state, config) -> the folder of a model, as it is published."""

  def save(kind, state=None, config=None):
    _, old_state, old_config = fixtures[kind]
    state, config = state or old_state, config or old_config
    safetensors.numpy.save_file(
      state, tmp_path / "model.safetensors", {"format": "pt"}
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path

  return save


def settings(kind, folder, **changes):
  config = dict(kind=kind, vocabulary="", weights=str(folder), length=LENGTH)
  return build.text(ConfigDict(config | changes))


def difference(text, params, arrays):
  """The largest difference from transformers at real tokens."""
  found = jax.jit(text.embedder)(params, arrays["ids"], arrays["mask"]).tokens
  assert found.dtype == np.float32 and found.shape == arrays["output"].shape
  return np.abs(found - arrays["output"])[arrays["mask"]].max()


@KINDS
def test_equals_transformers(fixtures, saved, kind):
  """With the sizes of config.json, and with the layers as one loop."""
  arrays, _, config = fixtures[kind]
  text = settings(kind, saved(kind))
  assert text.encoder.vocab_size == config["vocab_size"]
  params = published.load_text(text)
  assert difference(text, params, arrays) < 2e-5
  loop = settings(kind, saved(kind), encoder={"scan": True})
  assert difference(loop, params, arrays) < 2e-5


@KINDS
def test_padding_changes_nothing(fixtures, saved, kind):
  arrays, *_ = fixtures[kind]
  text = settings(kind, saved(kind))
  params = published.load_text(text)
  row, count = 1, int(arrays["mask"][1].sum())
  ids, mask = arrays["ids"][row : row + 1], arrays["mask"][row : row + 1]
  encode = jax.jit(text.embedder)
  short = encode(params, ids[:, :count], mask[:, :count]).tokens
  other = encode(params, ids + (1 - mask), mask).tokens[:, :count]
  expected = arrays["output"][row : row + 1, :count]
  np.testing.assert_allclose(short, expected, rtol=0, atol=2e-5)
  np.testing.assert_allclose(other, expected, rtol=0, atol=2e-5)


@KINDS
def test_shards_are_the_same_encoder(fixtures, saved, kind):
  arrays, *_ = fixtures[kind]
  text = settings(kind, saved(kind))
  devices = mesh.make_mesh(mesh.MeshShape(data=2, fsdp=2, tensor=2))
  with jax.set_mesh(devices):
    params = published.load_text(text, Placement(devices))
    assert difference(text, params, arrays) < 2e-5
  spec = lambda name: params["layers_0"][name]["kernel"].sharding.spec
  assert spec("wi") == PartitionSpec("fsdp", "tensor")
  assert spec("wo") == PartitionSpec("tensor", "fsdp")


def pretraining(state):
  """As bert-base-uncased is published: heads, and TensorFlow's names."""
  names = lambda name: (
    "bert."
    + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
      "LayerNorm.bias", "LayerNorm.beta"
    )
  )
  state = {names(name): value for name, value in state.items()}
  more = {"cls.predictions.bias": np.zeros(60, np.float32)}
  ids = {"bert.embeddings.position_ids": np.arange(20)[None]}
  return state | more | ids


def two_towers(state):
  """As clip-vit-large-patch14 is published: with the image tower."""
  state = {f"text_model.{name}": value for name, value in state.items()}
  one = np.ones((2, 2), np.float32)
  names = ("vision_model.encoder.layers.0.self_attn.k_proj.weight",
           "visual_projection.weight", "text_projection.weight")  # fmt: skip
  ids = {"text_model.embeddings.position_ids": np.arange(20)[None]}
  return state | dict.fromkeys(names, one) | ids | {"logit_scale": one[0, 0]}


@pytest.mark.parametrize(
  ("kind", "other"), [("bert", pretraining), ("clip", two_towers)]
)
def test_larger_models_hold_the_same_encoder(fixtures, saved, kind, other):
  arrays, state, config = fixtures[kind]
  if kind == "clip":
    config = {"model_type": "clip", "text_config": config, "hidden_size": 9}
  state = {n: np.asarray(x) for n, x in other(state).items()}
  text = settings(kind, saved(kind, state, config))
  assert text.encoder.emb_dim == 24
  assert difference(text, published.load_text(text), arrays) < 2e-5


@KINDS
@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"hidden_size": 48}, r"has emb_dim 24, but .* has hidden_size 48"),
    ({"hidden_act": "relu"}, r"config.json has hidden_act 'relu', expected"),
    ({"num_hidden_layers": 4}, r"num_encoder_layers 3, but .*num_hidden_la"),
    ({"max_position_embeddings": 0}, r"max_position_embeddings 0, expected a"),
    ({"layer_norm_eps": 1e-6}, r"layer_norm_eps 1e-06, expected 1e-"),
  ],
)
def test_another_encoder_is_refused(fixtures, saved, kind, change, said):
  text = settings(kind, saved(kind))
  saved(kind, config=fixtures[kind][2] | change)
  module = {"bert": bert, "clip": clip}[kind]
  with pytest.raises(ValueError, match=said):
    module.check_weights(
      published.resolve(text.weights), text.encoder, text.shapes()
    )


@KINDS
def test_missing_and_unknown_tensors_are_named(fixtures, saved, kind):
  state = dict(fixtures[kind][1])
  lost = next(name for name in state if "layer.1" in name or "layers.1" in name)
  state["odd"] = state.pop(lost)
  text = settings(kind, saved(kind, state))
  with pytest.raises(ValueError) as caught:
    published.load_text(text)
  assert f"they lack {lost}; they have the unknown odd" in str(caught.value)


@KINDS
@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"length": 21}, "length is 21, expected at most 20, the positions"),
    ({"int8": True}, "text.int8 is True, expected False: {kind} has no int8"),
    ({"encoder": {"num_heads": 5}}, "emb_dim is 24, expected a multiple of"),
    ({"encoder": {"head_dim": 8}}, "unknown config key text.encoder.head_dim"),
  ],
)
def test_settings_that_do_not_fit(saved, kind, changes, said):
  with pytest.raises(ValueError, match=said.format(kind=kind)):
    settings(kind, saved(kind), **changes)


def test_an_unknown_kind_is_refused():
  said = "text.kind is 'gpt', expected one of 't5', 'bert', 'clip'"
  with pytest.raises(ValueError, match=said):
    settings("gpt", "")


@pytest.mark.parametrize(
  ("rows", "pieces", "digest", "said"),
  [
    (30_522, 30_522, bert.VOCABULARIES[30_522], ""),
    (30_522, 30_522, "f" * 64, "warning"),
    (30_528, 30_522, bert.VOCABULARIES[30_522], ""),
    (28_996, 28_996, "f" * 64, ""),
    (30_522, 28_996, "f" * 64, "has 28996 pieces, expected the 30522"),
    (28_996, 30_522, "f" * 64, "has 30522 pieces, expected the 28996"),
  ],
)
def test_vocabularies(saved, monkeypatch, rows, pieces, digest, said):
  warned = []
  monkeypatch.setattr(logging, "warning", lambda text, *_: warned.append(text))
  text = settings("bert", saved("bert"), encoder={"vocab_size": rows})
  tokenizer = types.SimpleNamespace(vocab_size=pieces, pieces_sha256=digest)
  check = lambda: encoders.check_vocabulary(text, tokenizer, bert.VOCABULARIES)
  if said in ("", "warning"):
    check()
    assert len(warned) == (said == "warning")
  else:
    with pytest.raises(ValueError, match=said):
      check()
