"""Stored embeddings: formats, look-up by caption, damage and changes."""

import dataclasses
import json

import numpy as np
import pytest
from jax.dtypes import bfloat16

from imagen_jax.data import embeddings, records
from imagen_jax.data.embeddings import Embeddings, Plan

LENGTH, DIM = 6, 8
CAPTIONS = [f"caption {i} é" for i in range(7)]
PLAN = Plan(
  {"kind": "T5Encoder", "weights": "0f"}, "bfloat16", LENGTH, DIM, 3,
  (("a", 4), ("b", 2)), {"weights": "t5.safetensors"},
)  # fmt: skip


def tokens_of(i, count=None):
  rng = np.random.default_rng(i)
  shape = (count or 1 + i % LENGTH, DIM)
  return rng.normal(size=shape).astype(np.float32) * 10.0**i


@pytest.fixture
def folder(tmp_path):
  """Three shards; the last of them has no captions."""
  embeddings.keep_plan(PLAN, tmp_path)
  embeddings.write_null(tmp_path, PLAN, tokens_of(0))
  for i, of in enumerate(([0, 1, 2, 3], [4, 5, 6], [])):
    rows = [(CAPTIONS[j], PLAN.encode(tokens_of(j))) for j in of]
    embeddings.write_shard(tmp_path, PLAN, i, rows)
  return tmp_path


def test_the_shards_follow_from_the_dataset_alone():
  assert PLAN.shards == [(0, range(0, 3)), (0, range(3, 4)), (1, range(0, 2))]


@pytest.mark.parametrize("padding", [False, True])
def test_captions_are_found_in_any_order(folder, padding, monkeypatch):
  monkeypatch.setattr(records, "_most_open", lambda: 1)
  stored = Embeddings(folder, padding=padding)
  assert len(stored) == 7
  order = [5, 0, 6, 3, 0]
  tokens, mask = stored([CAPTIONS[i] for i in order])
  assert tokens.shape == (5, LENGTH, DIM) and tokens.dtype == bfloat16
  for row, real, i in zip(tokens, mask, order):
    expected = tokens_of(i)
    count = len(expected)
    assert real.tolist() == [padding or j < count for j in range(LENGTH)]
    np.testing.assert_array_equal(row[:count], expected.astype(bfloat16))
    assert not row[count:].any()
  tokens, mask = stored.null()
  np.testing.assert_array_equal(tokens[0, :1], tokens_of(0).astype(bfloat16))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e4])
def test_int8_is_off_by_half_a_scale_of_each_token(scale):
  plan = dataclasses.replace(PLAN, storage="int8")
  tokens = tokens_of(5) * scale
  tokens[2] *= 1000  # a token does not spoil the others
  tokens[3] = 0
  data = plan.encode(tokens)
  assert len(data) == len(tokens) * (4 + DIM)
  found = plan.decode(data)
  largest = np.abs(tokens).max(1, keepdims=True)
  assert (np.abs(found - tokens) <= 0.501 * largest / 127).all()
  assert not found[3].any()
  error = np.linalg.norm(found[:2] - tokens[:2]) / np.linalg.norm(tokens[:2])
  assert 0.0005 < error < 0.01


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (lambda folder: None, ""),
    (lambda f: (f / "embeddings.json").unlink(), "have no embeddings.json"),
    (lambda f: (f / "embeddings.json").write_text("{}"), "damaged, or of an"),
    (lambda f: (f / "embeddings.json").write_text("["), "is not JSON"),
    (lambda f: rewrite(f, version=2), "is damaged, or of another version"),
    (lambda f: rewrite(f, dim=0), "is damaged, or of another version"),
    (lambda f: rewrite(f, sources=[["a", -1]]), "is damaged, or of another"),
    (lambda f: rewrite(f, more=1), "is damaged, or of another version"),
    (lambda f: keys(f, 1).unlink(), "lack .*keys-00001.* all 3 shards: run em"),
    (lambda f: keys(f, 1).write_bytes(b"a"), "keys-00001-of-00003 are damaged"),
    (lambda f: keys(f, 1).write_bytes(keys(f, 0).read_bytes()[:96]),
     "no record of caption 'caption 0 é'|no embedding"),
    (lambda f: shard(f, 0).unlink(), "record-00000-of-00003 cannot be re"),
    (lambda f: (f / "null.embedding").unlink(), "embedding cannot be read"),
    (lambda f: rewrite(f, encoder={"kind": "other"}), "4 é' has no emb"),
    (lambda f: rewrite(f, dim=9), "has 80 bytes, expected 18 for each of 1 to"),
    (lambda f: rewrite(f, storage="int8"), "80 bytes, expected 12 for each"),
  ],
)  # fmt: skip
def test_damage_is_one_sentence(folder, change, said):
  change(folder)

  def read():
    stored = Embeddings(folder)
    for caption in (*CAPTIONS[4:], *CAPTIONS[:4]):
      stored([caption])
    stored.null()

  if not said:
    read()
    return
  with pytest.raises(ValueError, match=said) as caught:
    read()
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def rewrite(folder, **changes):
  path = folder / "embeddings.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def keys(folder, i):
  return embeddings.keys_path(folder, PLAN, i)


def shard(folder, i):
  return embeddings.shard_path(folder, PLAN, i)


@pytest.mark.parametrize("caption", ["caption 0 e", "Caption 0 é", "other"])
def test_a_changed_caption_is_named(folder, caption):
  said = f"caption '{caption}' has no embedding in {folder}, expected those of"
  with pytest.raises(ValueError, match=said):
    Embeddings(folder)([CAPTIONS[0], caption])


@pytest.mark.parametrize(
  ("change", "what"),
  [
    ({"encoder": {"kind": "T5Encoder", "weights": "1f"}}, "weights"),
    ({"encoder": {"weights": "0f"}}, "kind"),
    ({"storage": "int8"}, "storage"),
    ({"per_shard": 4}, "per_shard"),
    ({"sources": (("a", 4), ("c", 2))}, "records of the dataset"),
  ],
)
def test_a_folder_has_one_plan(folder, change, what):
  embeddings.keep_plan(PLAN, folder)
  embeddings.keep_plan(dataclasses.replace(PLAN, notes={}), folder)
  with pytest.raises(ValueError, match=f"was begun with other {what}, expect"):
    embeddings.keep_plan(dataclasses.replace(PLAN, **change), folder)
