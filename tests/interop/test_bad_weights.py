"""What is offered as T5's weights and is not: one sentence, nothing run."""

import json
import pathlib
import pickle

import flax
import msgpack
import numpy as np
import pytest
import safetensors.numpy

BLOCK = "encoder.block.0.layer.0.SelfAttention."


class Bomb:
  """Leaves a trace when it is unpickled."""

  def __init__(self, trace: pathlib.Path):
    self.trace = trace

  def __reduce__(self):
    return pathlib.Path.touch, (self.trace,)


# --- What can run.


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_pickles_are_refused_unopened(tmp_path, refused, suffix):
  folder, trace = tmp_path / "t5", tmp_path / "trace"
  folder.mkdir()
  path = folder / f"pytorch_model{suffix}"
  path.write_bytes(pickle.dumps(Bomb(trace)))
  assert refused(path) == (
    f"weights {path} are a pickle, which can run anything, expected safetensors"
  )
  assert refused(folder) == (
    f"weights {folder} are pickles ({path.name}), which can run anything, "
    "expected model.safetensors or model.safetensors.index.json"
  )
  assert not trace.exists()


def test_an_index_of_pickles(tmp_path, refused):
  trace = tmp_path / "trace"
  (tmp_path / "a.bin").write_bytes(pickle.dumps(Bomb(trace)))
  path = tmp_path / "pytorch_model.bin.index.json"
  path.write_text('{"weight_map": {"shared.weight": "a.bin"}}')
  assert refused(path) == (
    f"weights {tmp_path}/a.bin are a pickle, which can run anything, expected "
    "safetensors"
  )
  assert not trace.exists()


def test_a_pickle_by_another_name_is_damaged(tmp_path, refused):
  trace = tmp_path / "trace"
  for name in ("model.safetensors", "checkpoint"):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(trace)))
    assert f"weights {path} are damaged or not" in refused(tmp_path)
  assert not trace.exists()


@pytest.mark.parametrize("dtype", ["O", "i4,O", "no such type"])
def test_no_object_comes_out_of_msgpack(tmp_path, refused, dtype):
  array = msgpack.packb(((1,), dtype, b"\0" * 12))
  leaf = {"embedding": msgpack.ExtType(1, array)}
  contents = {"version": 3, "optimizer": {"target": leaf}}
  (tmp_path / "checkpoint").write_bytes(msgpack.packb(contents))
  said = f"weights {tmp_path}/checkpoint are damaged or not of t5x, expected "
  assert refused(tmp_path) == said + "its checkpoint of version 3"


# --- Files that are missing or damaged.


def test_nothing_is_there(tmp_path, refused):
  path = tmp_path / "model.safetensors"
  no_file = "cannot be read: No such file or directory"
  assert refused(path) == f"weights {path} {no_file}"
  assert refused(tmp_path / "t5") == f"weights {tmp_path}/t5 {no_file}"
  wanted = "model.safetensors, model.safetensors.index.json or a t5x checkpoint"
  said = f"weights {tmp_path} are not there, expected {wanted}; the folder has "
  assert refused(tmp_path) == said + "nothing"
  (tmp_path / "checkpoint_1000000").mkdir()
  assert refused(tmp_path) == said + "checkpoint_1000000"


@pytest.mark.parametrize("size", [0, 7, 100, 5000, -1])
def test_a_truncated_file(tmp_path, state, refused, size):
  path = tmp_path / "model.safetensors"
  path.write_bytes(safetensors.numpy.save(state)[:size])
  said = f"weights {path} are damaged or not safetensors: "
  assert refused(tmp_path).startswith(said)


def test_a_shard_is_missing_or_lacks_a_tensor(
  tmp_path, state, refused, write_shards
):
  write_shards(tmp_path, state)
  shard = tmp_path / "model-00002-of-00003.safetensors"
  names = sorted(safetensors.numpy.load_file(shard))
  index = "model.safetensors.index.json"
  safetensors.numpy.save_file({names[0]: np.ones(2)}, shard)
  assert refused(tmp_path) == (
    f"weights {shard} lack {', '.join(names[1:5])} and {len(names) - 5} more, "
    f"which {index} places there"
  )
  shard.write_bytes(safetensors.numpy.save(state)[:-7])
  said = f"weights {shard} are damaged or not safetensors: "
  assert refused(tmp_path).startswith(said)
  shard.unlink()
  said = f"weights {tmp_path} lack the file {shard.name}, which {index} names"
  assert refused(tmp_path) == said


NAMES = "expected the names of safetensors files beside it"


@pytest.mark.parametrize(
  ("index", "said"),
  [
    ("{", "is not JSON: Expecting property name"),
    ("[" * 200_000, "is nested too deeply, expected at most 100 levels"),
    ('{"a": ' * 101 + "1" + "}" * 101, "is nested too deeply, expected at"),
    ("[]", "has no weight_map, expected one from tensors to the safetensors"),
    ("{}", "has no weight_map, expected"),
    ('{"weight_map": ["a"]}', "has no weight_map, expected"),
    ('{"weight_map": {"a": 1}}', f"names the file '1', {NAMES}"),
    ('{"weight_map": {"a": null}}', f"names the file 'None', {NAMES}"),
    (
      json.dumps({"weight_map": {"a": "\x1b[2J\n" * 10**6}}),
      "names the file '\\x1b[2J\\n",
    ),
  ],
)
def test_no_index(tmp_path, refused, index, said):
  path = tmp_path / "model.safetensors.index.json"
  path.write_text(index)
  assert refused(tmp_path).startswith(f"index of weights {path} {said}")


# Patterns, and paths out of the repository.
STRAYS = (
  "*", "*.safetensors", "?.safetensors", "[a].safetensors", "a/b.safetensors",
  "../a.safetensors", "/a.safetensors", "..\\a.safetensors", ".safetensors",
  "..", "", ".a.safetensors", "a.py", "a.safetensors.py", "a\n.safetensors",
)  # fmt: skip


@pytest.mark.parametrize("name", STRAYS)
def test_an_index_names_files_beside_it_alone(tmp_path, refused, name):
  path = tmp_path / "model.safetensors.index.json"
  path.write_text(json.dumps({"weight_map": {"a": name}}))
  said = f"index of weights {path} names the file {name!r}, {NAMES}"
  assert refused(tmp_path) == said


BAD_NAMES = ("\x1b]0;you\x07", "a\nb", "n" * 10**6, " a", "")


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_names_of_tensors_are_escaped_and_cut(tmp_path, state, refused, bad):
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(state | {bad: np.ones(2, np.float32)}, path)
  assert f"have the unknown {bad!r}"[:60] in refused(path)
  assert refused(path).isprintable()


# --- Those of another net.


def test_misfits_are_named_as_the_file_names_them(tmp_path, state, refused):
  """A T5 of the first version, one layer deeper and narrower in places."""
  state = {n: v for n, v in state.items() if "DenseReluDense" not in n}
  state |= {
    "encoder.block.0.layer.1.DenseReluDense.wi.weight": np.ones((56, 40)),
    BLOCK + "q.weight": np.ones((40, 48)),
    "encoder.final_layer_norm.weight": np.ones(40, np.int8),
  }
  path = tmp_path / "model.safetensors"
  safetensors.numpy.save_file(state, path)
  wi = "encoder.block.{}.layer.1.DenseReluDense.wi{}.weight"
  wo = "encoder.block.{}.layer.1.DenseReluDense.wo.weight"
  assert refused(path) == (
    f"weights {path} are not those of the config's net: they lack "
    f"{wi.format(0, '_0')}, {wi.format(0, '_1')}, {wo.format(0)}, "
    f"{wi.format(1, '_0')} and 5 more; they have the unknown "
    f"{wi.format(0, '')}; they have encoder.final_layer_norm.weight as "
    "I8[40] (expected floats of 16 bits or more, 40), "
    f"{BLOCK}q.weight as float64[40,48] (expected 48,40)"
  )


def test_a_t5x_checkpoint_of_another_depth_or_net(
  tmp_path, flat, refused, write_t5x
):
  deeper = {n.replace("layers_2", "layers_3"): x for n, x in flat.items()}
  path = write_t5x(tmp_path / "deeper", deeper)
  said = f"weights {path} are not those of the config's net: they lack "
  assert refused(path).startswith(said + "encoder/layers_2/attention/key/")
  assert " and 5 more; they have the unknown encoder/layers_3/" in refused(path)

  bert = {"embedder/word/embedding": np.ones((9, 4)), "pooler/bias": np.ones(4)}
  path = write_t5x(tmp_path / "bert", bert)
  assert refused(path).endswith(
    "; they have the unknown embedder/word/embedding, pooler/bias"
  )


@pytest.mark.parametrize("version", [2, 4, "3", None])
def test_a_t5x_checkpoint_of_another_version(
  tmp_path, flat, refused, write_t5x, version
):
  path = write_t5x(tmp_path, flat, version=version)
  said = f"weights {path}/checkpoint are of t5x's version {version!r}"
  assert refused(path) == said + ", expected 3"


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (b"", "are damaged or not of t5x"),
    (b'model_checkpoint_path: "model.ckpt-0"', "are damaged or not of t5x"),
    ({"params": {"a": 1}}, "are damaged or not of t5x"),
    ({"version": 3}, "have no parameters as t5x stores them"),
    ({"version": 3, "optimizer": {"target": {}}}, "have no parameters as t5x"),
    (
      {"version": 3, "optimizer": {"target": {"a": "elsewhere://a"}}},
      "have no parameters as t5x stores them",
    ),
    (
      {
        "version": 3,
        "optimizer": {
          "target": {"a": {"driver": "zarr", "kvstore": "x", "metadata": {}}}
        },
      },
      "have no parameters as t5x stores them",
    ),
    ({"target": {"a": "PLACEHOLDER://.."}}, "have no parameters as t5x stores"),
    ({"target": {"a": "PLACEHOLDER://"}}, "have no parameters as t5x stores"),
    (b"\x91" * 100_000 + b"\xc0", "are damaged or not of t5x"),
    (
      b"\x82\xa7version\x03\xa9optimizer\x81\xa6target"
      + b"\x81\xa1a" * 900
      + b"\xc0",
      "have no parameters as t5x stores them",
    ),
    ({"version": "\x1b" * 10**6}, "are of t5x's version '\\x1b"),
  ],
  ids=[
    "empty",
    "tensorflow",
    "flax",
    "bare",
    "hollow",
    "scheme",
    "spec",
    "out of the folder",
    "the folder",
    "nested",
    "nested less",
    "long",
  ],
)
def test_a_file_named_checkpoint_of_another_kind(tmp_path, refused, data, said):
  path = tmp_path / "checkpoint"
  if isinstance(data, dict):
    data = flax.serialization.msgpack_serialize(data)
  path.write_bytes(data)
  assert refused(tmp_path).startswith(f"weights {path} {said}")


def test_no_cut_of_a_checkpoint_ends_in_a_traceback(
  tmp_path, flat, refused, write_t5x
):
  path = (
    write_t5x(tmp_path, flat, {"encoder/encoder_norm/scale"}) / "checkpoint"
  )
  data = path.read_bytes()
  for size in range(0, len(data), len(data) // 97):
    path.write_bytes(data[:size])
    assert refused(tmp_path).startswith(f"weights {path} are damaged or not")


def test_a_t5x_array_is_missing_or_damaged(tmp_path, flat, refused, write_t5x):
  path = write_t5x(tmp_path, flat)
  name = "encoder/layers_1/mlp/wo/kernel"
  array = path / f"target.{name.replace('/', '.')}"
  chunk, about = array / "1.0", array / ".zarray"
  whole = chunk.read_bytes()
  for bad in (b"", whole[:40], b"\0" * 40):
    chunk.write_bytes(bad)
    assert refused(path).startswith(f"weights {path} have {name} damaged: ")
  # Zeros, were TensorStore left to itself.
  chunk.unlink()
  assert f"weights {path} have {name} damaged: NOT_FOUND: " in refused(path)
  about.write_text(json.dumps({"shape": [56, 40]}))
  assert refused(path).startswith(f"weights {path} have {name} damaged: ")
  about.unlink()
  assert refused(path) == f"weights {path} lack the folders {array.name}"
