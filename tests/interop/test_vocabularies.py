"""Which vocabulary belongs to which text encoder, and which sizes."""

import dataclasses
import json
import types

import pytest
from absl import logging
from ml_collections import ConfigDict

from imagen_jax import build, imagen
from imagen_jax.build.configs import read_config
from imagen_jax.interop import published, t5
from imagen_jax.text.vocabulary import train_vocabulary


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
  """A vocabulary of as many pieces as the demo's, learnt elsewhere."""
  path = tmp_path_factory.mktemp("vocabulary") / "foreign.model"
  words = [f"the quick brown fox {i} jumps over lazy dogs" for i in range(99)]
  words += ["pack my box with five dozen liquor jugs and a sphinx of quartz"]
  words += ["how vexingly daft zebras jump; bright vixens quack over wax"] * 9
  words += [f"{a}{b}{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
  assert train_vocabulary(words, path, vocab_size=256) == 256
  return path


@pytest.fixture
def small(text, foreign):
  """small(weights): config.text of the small T5 with the foreign vocabulary."""
  return lambda weights: dataclasses.replace(
    text(weights), vocabulary=str(foreign)
  )


def test_a_foreign_vocabulary_is_refused(foreign):
  """It gave meaningless text, and so meaningless images."""
  config = read_config("shapes")
  imagen.load(config)
  with pytest.raises(ValueError) as caught:
    imagen.load(config, overrides={"text.vocabulary": str(foreign)})
  ours = build.tokenizer(build.text(config.text)).fingerprint
  said = str(caught.value)
  assert said.startswith(f"vocabulary {foreign} is not the one that weights ")
  assert f"expected {ours[:16]}..." in said


@pytest.mark.parametrize("layout", ["hugging_face", "t5x"])
def test_exported_weights_record_their_vocabulary(
  tmp_path, params, small, foreign, layout
):
  save = {"hugging_face": t5.save_hugging_face, "t5x": t5.save_t5x}[layout]
  digest = published.Tokenizer(foreign, 9).fingerprint
  for name, recorded in (("a", digest), ("b", "0" * 64), ("c", None)):
    save(tmp_path / name, params, recorded)
    assert t5.recorded_vocabulary(tmp_path / name) == recorded
  wide = lambda name: widened(small(tmp_path / name))
  check = lambda name: t5.check_vocabulary(
    tmp_path / name, wide(name), published.tokenizer(wide(name))
  )
  check("a")
  check("c")
  with pytest.raises(ValueError, match="trained with: its SHA-256 is .* 0000"):
    check("b")


def widened(text, rows=512):
  return dataclasses.replace(text, encoder=text.encoder.clone(vocab_size=rows))


def test_shards_record_it_too(tmp_path, state, small, write_shards):
  assert t5.recorded_vocabulary(write_shards(tmp_path, state)) is None


@pytest.mark.parametrize(
  ("rows", "pieces", "digest", "said"),
  [
    (t5.T5_ROWS, 32_000, t5.T5_VOCABULARY, ""),
    (t5.T5_ROWS, 32_100, "f" * 64, ""),
    (t5.T5_ROWS, 32_000, "f" * 64, "warning"),
    (t5.T5_ROWS, 1000, "f" * 64, "has 1000 pieces, expected T5's published"),
    (t5.T5_ROWS, 32_128, "f" * 64, "has 32128 pieces, expected T5's published"),
    (t5.T5_ROWS, 31_999, "f" * 64, "has 31999 pieces, expected T5's published"),
    (264, 256, "f" * 64, ""),
    (264, 1000, "f" * 64, "has 1000 pieces, but the text encoder embeds only"),
  ],
)
def test_weights_that_record_none(
  tmp_path, state, text, write_shards, monkeypatch, rows, pieces, digest, said
):
  """For published T5 the SHA-256 is known, or else the number of pieces."""
  warned = []
  monkeypatch.setattr(logging, "warning", lambda text, *_: warned.append(text))
  folder = write_shards(tmp_path, state)
  config = widened(text(folder), rows)
  tokenizer = types.SimpleNamespace(vocab_size=pieces, fingerprint=digest)
  check = lambda: t5.check_vocabulary(folder, config, tokenizer)
  if said in ("", "warning"):
    check()
    assert len(warned) == (said == "warning")
  else:
    with pytest.raises(ValueError, match=said):
      check()


# --- Sizes in config.json.


@pytest.fixture
def folder(tmp_path, params):
  t5.save_hugging_face(tmp_path, params)
  return tmp_path


def change(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_sizes_left_out_come_from_config_json(folder, text):
  expected = text(folder).encoder
  for path in (folder, folder / "model.safetensors"):
    config = {"vocabulary": "", "weights": str(path), "encoder": {}}
    assert build.text(ConfigDict(config)).encoder == expected
    del config["encoder"]
    assert build.text(ConfigDict(config)).encoder == expected
    config["encoder"] = {"scan": True, "mlp_dim": 7}
    found = build.text(ConfigDict(config)).encoder
    assert found == expected.clone(scan=True, mlp_dim=7)


@pytest.mark.parametrize("weights", ["nowhere", "", 3, None])
def test_sizes_that_are_nowhere(weights):
  config = ConfigDict({"vocabulary": "", "encoder": {"emb_dim": 8}})
  config.weights = weights
  with pytest.raises(ValueError, match="text.encoder has no vocab_size, num_"):
    build.text(config)


def test_other_sizes_are_named_in_one_sentence(folder, text):
  change(folder, d_model=768, num_heads=12)
  with pytest.raises(ValueError) as caught:
    t5.check_weights(folder, text(folder).encoder, text().shapes())
  assert str(caught.value) == (
    "config text.encoder has emb_dim 40, num_heads 4, but config.json of "
    f"weights {folder} has d_model 768, num_heads 12"
  )


@pytest.mark.parametrize(
  "changes",
  [
    {"d_model": 0},
    {"d_model": -1},
    {"d_ff": 2**62},
    {"num_layers": True},
    {"num_layers": "2"},
    {"d_kv": 1.5},
    {"vocab_size": float("nan")},
    {"num_heads": []},
    {"feed_forward_proj": "relu"},
    {"feed_forward_proj": "\x1b" * 10**6},
    {"layer_norm_epsilon": 1e-5},
  ],
)
def test_odd_sizes_are_refused(folder, changes):
  change(folder, **changes)
  (key,) = changes
  with pytest.raises(ValueError, match=f"config.json has {key} ") as caught:
    t5.SIZES.read(folder)
  assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_a_config_json_of_something_else_is_left_alone(folder, text):
  for data in ("[]", '{"model_type": "bert"}', "{}"):
    (folder / "config.json").write_text(data)
    assert t5.SIZES.read(folder) is None
  t5.check_weights(folder, text(folder).encoder, text().shapes())
  (folder / "config.json").write_text("[" * 100_000)
  with pytest.raises(ValueError, match="is nested too deeply"):
    t5.SIZES.read(folder)
