"""T5 in Hugging Face's layout: read, compared with transformers, written."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from imagen_jax import build
from imagen_jax.configs import t5_xxl
from imagen_jax.interop import hub, t5
from imagen_jax.interop.tensors import Tensor
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement

HERE = pathlib.Path(__file__).parent
FIXTURE = HERE.parent / "oracles" / "t5_v1_1.safetensors"
TABLES = ("shared.weight", "encoder.embed_tokens.weight")


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def one_file(folder, state):
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "model.safetensors"
  safetensors.numpy.save_file(state, path, {"format": "pt"})
  return folder


@pytest.fixture
def folder(tmp_path, state):
  return one_file(tmp_path / "t5", state)


# --- Reading.


def test_outputs_are_those_of_transformers(text, folder):
  """Of the weights that make_t5_fixture.py gave to T5EncoderModel."""
  config, fixture = text(folder), safetensors.numpy.load_file(FIXTURE)
  apply = jax.jit(config.encoder.apply)
  params = {"params": build.load_text(config)}
  for name in ("short", "long"):
    with jax.default_matmul_precision("highest"):
      output = apply(params, fixture[f"{name}/ids"], fixture[f"{name}/mask"])
    np.testing.assert_allclose(
      output, fixture[f"{name}/output"], rtol=0, atol=2e-5
    )


def test_every_layout_gives_the_same(
  tmp_path, state, like, params, write_shards
):
  encoder = {n: x for n, x in state.items() if not n.startswith("decoder.")}
  del encoder["lm_head.weight"]
  one_file(tmp_path / "encoder", encoder)
  for table in TABLES:
    one_file(tmp_path / table, {n: encoder[n] for n in encoder if n != table})
  shards = write_shards(tmp_path / "shards", state)
  paths = [tmp_path / "encoder", *(tmp_path / table for table in TABLES)]
  paths += [tmp_path / "encoder" / "model.safetensors"]
  paths += [shards, shards / "model.safetensors.index.json"]
  for path in paths:
    assert_same(t5.load(path, like), params)


def test_our_own_file_is_read_as_ever(tmp_path, like, flat, params):
  path = tmp_path / "ours.safetensors"
  safetensors.numpy.save_file(flat, path)
  assert_same(t5.load(path, like), params)


def test_dtypes_are_those_wanted_whatever_the_file_has(
  tmp_path, text, state, params
):
  """In T5's half-precision files wo is float32."""
  kinds = {"wo.weight": np.float32, "shared.weight": jnp.bfloat16}
  kind = lambda n: next((kinds[k] for k in kinds if n.endswith(k)), np.float16)
  mixed = {name: value.astype(kind(name)) for name, value in state.items()}
  del mixed["encoder.embed_tokens.weight"]
  config = text(one_file(tmp_path, mixed), dtype="bfloat16")
  loaded = build.load_text(config)
  wanted = config.shapes()
  assert_same(
    jax.tree.map(lambda x: x.dtype, loaded),
    jax.tree.map(lambda x: x.dtype, wanted),
  )
  layer, ours = loaded["encoder"]["layers_1"], params["encoder"]["layers_1"]
  kernel = lambda layer: layer["mlp"]["wo"]["kernel"]
  np.testing.assert_array_equal(
    kernel(layer), kernel(ours).astype(jnp.bfloat16)
  )
  key = lambda layer: layer["attention"]["key"]["kernel"]
  np.testing.assert_array_equal(
    key(layer), key(ours).astype(np.float16).astype(jnp.bfloat16)
  )


@pytest.mark.parametrize("shards", [1, 3])
def test_into_a_sharded_place(
  tmp_path, text, state, params, shards, write_shards
):
  path = write_shards(tmp_path / "shards", state, shards)
  placement = Placement(make_mesh(MeshShape(data=1, fsdp=2, tensor=4)))
  loaded = build.load_text(text(path), placement)
  assert_same(loaded, params)
  places = placement.params(loaded)
  assert jax.tree.map(lambda x: x.sharding, loaded) == places
  kernel = loaded["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (20, 14)


def test_the_real_encoder_is_the_tree_of_t5_xxl(monkeypatch):
  """By the names and shapes of DeepFloyd's copy, which has both tables."""
  listed = json.loads((HERE / "t5_v1_1_xxl.json").read_text())
  shapes = dict(listed["once"])
  for i in range(listed["layers"]):
    for name, shape in listed["layer"].items():
      shapes[f"encoder.block.{i}.{name}"] = shape
  assert len(shapes) == 220
  float16 = np.dtype("float16")
  found = {n: Tensor(tuple(s), float16, None) for n, s in shapes.items()}
  monkeypatch.setattr(hub, "tensors", lambda path: found)

  like = build.text(t5_xxl.get_config().text).shapes()
  tensors = t5.tensors("nowhere", like)
  wanted = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(like)
  }
  assert {name: t.shape for name, t in tensors.items()} == wanted


# --- Writing.


def test_what_is_written_is_read_back_bit_by_bit(tmp_path, text, folder):
  config = text(folder, dtype="bfloat16")
  params = build.load_text(config)
  t5.save_hugging_face(tmp_path / "new" / "t5", params)
  again = t5.load(tmp_path / "new" / "t5", config.shapes())
  assert_same(again, params)
  names = sorted(item.name for item in (tmp_path / "new" / "t5").iterdir())
  assert names == ["config.json", "model.safetensors"]


def test_what_is_written_is_what_transformers_has(tmp_path, state, params):
  t5.save_hugging_face(tmp_path, params)
  with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
    assert file.metadata() == {"format": "pt"}
  stored = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  encoder = {
    name: value
    for name, value in state.items()
    if not name.startswith(("decoder.", "lm_head.", "encoder.embed"))
  }
  assert stored.keys() == encoder.keys()
  jax.tree.map(np.testing.assert_array_equal, stored, encoder)


def test_the_config_written_is_that_of_t5_xxl():
  like = build.text(t5_xxl.get_config().text).shapes()
  written = t5.hugging_face_config(like)
  published = json.loads((HERE / "t5_v1_1_xxl.json").read_text())["config"]
  assert {key: written[key] for key in published} == published


@pytest.mark.oracles
def test_transformers_reads_what_is_written(tmp_path, params):
  import torch
  import transformers

  fixture = safetensors.numpy.load_file(FIXTURE)
  t5.save_hugging_face(tmp_path, params)
  model = transformers.T5EncoderModel.from_pretrained(tmp_path).eval()
  with torch.no_grad():
    output = model(
      input_ids=torch.tensor(fixture["short/ids"]).long(),
      attention_mask=torch.tensor(fixture["short/mask"]).long(),
    )
  np.testing.assert_allclose(
    output.last_hidden_state, fixture["short/output"], rtol=0, atol=1e-5
  )
