"""A small T5 in the layouts of its publishers, written by hand.

Nothing here calls what is under test: files are made of numpy, safetensors,
tensorstore and flax's msgpack, as Hugging Face and t5x make them.
"""

import json
import pathlib
import runpy

import flax
import numpy as np
import pytest
import safetensors.numpy
import tensorstore as ts
from ml_collections import ConfigDict

from imagen_jax import build
from imagen_jax.interop import t5

SCRIPT = pathlib.Path(__file__).parents[1] / "oracles" / "make_t5_fixture.py"
# What t5x's own files have of it; the path is a name, wherever it is.
KVSTORES = {
  "gcs": lambda name: {
    "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": name}
  },
  "old gcs": lambda name: {
    "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket"},
    "path": name,
  },
  "gfile": lambda name: {
    "kvstore": {"driver": "gfile", "path": f"/cns/home/run/{name}/"}
  },
  "file": lambda name: {"kvstore": {"driver": "file", "path": name}},
}


@pytest.fixture(scope="session")
def oracle():
  """The script that made transformers' outputs."""
  return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="session")
def flat(oracle):
  """{t5x path: float32 array}: no two widths equal, scales far from one."""
  return oracle["make_params"](seed=0)


@pytest.fixture(scope="session")
def params(flat):
  return flax.traverse_util.unflatten_dict(flat, sep="/")


@pytest.fixture(scope="session")
def text(oracle):
  """config.text of the small T5: text(weights, dtype=...) -> build.Text."""

  def text(weights="", dtype="float32", **settings):
    encoder = oracle["SIZES"] | {"dtype": dtype}
    config = {"encoder": encoder, "vocabulary": "", "weights": str(weights)}
    return build.text(ConfigDict(config | settings))

  return text


@pytest.fixture(scope="session")
def like(text):
  return text().shapes()


@pytest.fixture(scope="session")
def state(oracle, flat):
  """The state dict of a full T5: Hugging Face's names, and a decoder's."""
  state = oracle["to_hugging_face"](flat)
  state = {name: np.ascontiguousarray(value) for name, value in state.items()}
  decoder = {
    "decoder.block.0.layer.1.EncDecAttention.q.weight": np.ones((48, 40)),
    "decoder.embed_tokens.weight": state["shared.weight"],
    "lm_head.weight": np.ones((96, 40)),
  }
  return state | {n: x.astype(np.float32) for n, x in decoder.items()}


@pytest.fixture(scope="session")
def write_shards():
  """write_shards(folder, state, count): files and an index, as transformers."""

  def write(folder, state, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    name = lambda i: f"model-{i + 1:05}-of-{count:05}.safetensors"
    places = {n: name(i % count) for i, n in enumerate(sorted(state))}
    for shard in set(places.values()):
      part = {n: state[n] for n in state if places[n] == shard}
      safetensors.numpy.save_file(part, folder / shard, {"format": "pt"})
    size = sum(value.nbytes for value in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    index = json.dumps(index, indent=2)
    (folder / "model.safetensors.index.json").write_text(index)
    return folder

  return write


@pytest.fixture(scope="session")
def write_t5x():
  """write_t5x(folder, flat): checkpoint_N of a full model, as t5x saves it.

  The file lists its decoder and its Adafactor, but their arrays are not
  there. inline: names of leaves in the msgpack; the rest are zarr. kvstore
  "orbax" is a newer t5x's file.
  """

  def leaf(folder, name, value, kvstore):
    name = f"target.{name}".replace("/", ".")
    spec = {
      "driver": "zarr",
      "dtype": value.dtype.name,
      "kvstore": {"driver": "file", "path": str(folder / name)},
      "metadata": {
        "shape": value.shape,
        "chunks": [max(1, n // 2 + 1) for n in value.shape],
        "compressor": {"id": "gzip"},
      },
    }
    store = ts.open(spec, create=True).result()
    store.write(value).result()
    if kvstore == "orbax":
      return f"PLACEHOLDER://{name}"
    # t5x registers this as the state of a spec.
    return store.spec().to_json() | KVSTORES[kvstore](name)

  def write(folder, flat, inline=(), kvstore="gcs", version=3):
    folder.mkdir(parents=True, exist_ok=True)
    target = {
      name: value if name in inline else leaf(folder, name, value, kvstore)
      for name, value in flat.items()
    }
    about = {"shape": [4, 4], "chunks": [4, 4]}
    gone = lambda name: (
      {"driver": "zarr", "dtype": "float32", "metadata": about}
      | KVSTORES.get(kvstore, KVSTORES["file"])(name)
    )
    target["decoder/logits_dense/kernel"] = gone("target.decoder.logits_dense")
    moments = {"v_row": gone("state.v_row"), "m": np.zeros(1, np.float32)}
    contents = {
      "target": flax.traverse_util.unflatten_dict(target, sep="/"),
      "state": {"step": np.int32(7), "param_states": {"mlp": moments}},
    }
    if kvstore != "orbax":
      contents = {"version": version, "optimizer": contents}
    data = flax.serialization.msgpack_serialize(contents)
    (folder / "checkpoint").write_bytes(data)
    return folder

  return write


@pytest.fixture
def refused(like):
  """refused(path) -> the one sentence of load's error."""

  def refused(path):
    with pytest.raises(ValueError) as caught:
      t5.load(path, like)
    print(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return str(caught.value)

  return refused
