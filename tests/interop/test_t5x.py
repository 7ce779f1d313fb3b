"""T5 in t5x's layout: read, stacked or not, from anywhere; and written."""

import ctypes
import itertools
import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from etils import epath
from ml_collections import ConfigDict

from imagen_jax import build
from imagen_jax.interop import hub, published, t5, t5x
from imagen_jax.parallel.mesh import MeshShape, make_mesh
from imagen_jax.parallel.sharding import Placement

LAYERS = 3


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def stacked(flat, stack="encoder"):
  """As t5x scans layers: one leaf for all of them, along its second axis."""
  names = dict.fromkeys(
    name.split("/", 2)[2] for name in flat if "/layers_" in name
  )
  found = {n: value for n, value in flat.items() if "/layers_" not in n}
  for name in names:
    layers = [flat[f"encoder/layers_{i}/{name}"] for i in range(LAYERS)]
    found[f"encoder/{stack}/{name}"] = np.stack(layers, axis=1)
  return found


def with_heads(flat):
  """As Flaxformer has them: [D, heads, head_dim] and [heads, head_dim, D]."""
  shapes = dict.fromkeys(("query", "key", "value"), (40, 4, 12))
  shapes["out"] = (4, 12, 40)
  cut = lambda n, x: x.reshape(shapes[n.split("/")[-2]])
  return {n: cut(n, x) if "/attention/" in n else x for n, x in flat.items()}


# --- Reading.


@pytest.mark.parametrize("kvstore", ["gcs", "old gcs", "gfile", "file"])
def test_a_checkpoint_is_read_wherever_it_was_made(
  tmp_path, flat, params, like, write_t5x, kvstore
):
  inline = {"encoder/encoder_norm/scale", "encoder/relpos_bias/rel_embedding"}
  folder = tmp_path / "a run" / "checkpoint_7"
  write_t5x(folder, flat, inline, kvstore=kvstore)
  assert_same(t5.load(folder, like), params)


@pytest.mark.parametrize("within", ["", "state"])
@pytest.mark.parametrize("kvstore", ["gcs", "orbax"])
def test_a_checkpoint_by_its_folder_or_its_file(
  tmp_path, flat, params, like, write_t5x, within, kvstore
):
  """A newer t5x has all of it in a folder `state`."""
  folder = write_t5x(tmp_path / "ck" / within, flat, kvstore=kvstore)
  for path in (tmp_path / "ck", folder, folder / "checkpoint"):
    assert_same(t5.load(path, like), params)
    assert_same(t5.load(str(path), like), params)
  with pytest.raises(ValueError, match="ck has a checkpoint, expected a new"):
    t5.save_t5x(tmp_path / "ck", params)


@pytest.mark.parametrize("stack", ["encoder", "layers"])
@pytest.mark.parametrize("heads", [False, True])
def test_stacked_layers_are_taken_apart(
  tmp_path, text, flat, params, write_t5x, stack, heads
):
  flat = stacked(with_heads(flat) if heads else flat, stack)
  assert flat[f"encoder/{stack}/mlp/wo/kernel"].shape == (56, 3, 40)
  config = text(write_t5x(tmp_path, flat, {"encoder/encoder_norm/scale"}))
  assert_same(build.load_text(config), params)


def test_heads_are_joined_without_a_stack(
  tmp_path, flat, params, like, write_t5x
):
  assert_same(t5.load(write_t5x(tmp_path, with_heads(flat)), like), params)


@pytest.mark.parametrize("layout", [dict, stacked, with_heads])
def test_into_a_sharded_place(tmp_path, text, flat, write_t5x, layout):
  """bfloat16 as t5x's version 3 stores it, and in parts over the devices."""
  half = {name: value.astype(jnp.bfloat16) for name, value in flat.items()}
  path = write_t5x(tmp_path, layout(half))
  config = text(path, dtype="bfloat16")
  placement = Placement(make_mesh(MeshShape(data=1, fsdp=2, tensor=4)))
  loaded = build.load_text(config, placement)
  assert jax.tree.map(lambda x: x.sharding, loaded) == placement.params(loaded)
  kernel = loaded["encoder"]["layers_0"]["attention"]["out"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (12, 20)
  halves = flax.traverse_util.unflatten_dict(half, sep="/")
  shapes = config.shapes()
  cast = lambda value, like: value.astype(like.dtype)
  assert_same(loaded, jax.tree.map(cast, halves, shapes))


def test_a_chunk_is_decoded_once(tmp_path, flat, like, write_t5x):
  """For all layers of which it holds a part, and for all devices."""
  path = write_t5x(tmp_path, stacked(flat))
  placement = Placement(make_mesh(MeshShape(data=1, fsdp=2, tensor=4)))
  before = files_read()
  t5.load(path, like, placement)
  arrays = list(path.glob("target.*"))
  chunks = [chunk for array in arrays for chunk in array.glob("[0-9]*")]
  assert len(chunks) > 2 * len(arrays)
  assert files_read() - before == len(chunks) + len(arrays)  # and .zarray


def files_read() -> int:
  """How many files TensorStore has read so far."""
  name = "/tensorstore/kvstore/file/read"
  metrics = ts.experimental_collect_matching_metrics(name)
  (metric,) = [metric for metric in metrics if metric["name"] == name]
  return sum(value["value"] for value in metric["values"])


def test_gs_paths_are_kept_whole():
  """What can be seen of them without a network."""
  url = "gs://t5-data/pretrained_models/t5x/t5_1_1_xxl/checkpoint_1000000"
  path = published.resolve(url)
  assert str(path) == url
  kvstore = t5x._kvstore(path, "target.encoder.encoder_norm.scale")
  folder = url.removeprefix("gs://t5-data/") + "/target.encoder.encoder_norm."
  assert kvstore == {
    "driver": "gcs",
    "bucket": "t5-data",
    "path": folder + "scale/",
  }
  spec = ts.Spec({"driver": "zarr", "kvstore": kvstore})
  assert spec.kvstore.url == f"gs://t5-data/{kvstore['path']}"
  with pytest.raises(ValueError, match=f"^weights {url} cannot be read in "):
    hub.tensors(epath.Path(url))


def rss_anon() -> int:
  """Bytes of memory that no file backs; mapped files may go at any time."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(status.split("RssAnon:")[1].split()[0])


@pytest.mark.parametrize("layout", ["t5x", "hugging face"])
def test_little_memory_is_held_beside_the_result(tmp_path, monkeypatch, layout):
  if not pathlib.Path("/proc/self/status").exists():
    pytest.skip("needs Linux's /proc")
  encoder = dict(
    vocab_size=1024, emb_dim=512, num_heads=4, num_encoder_layers=12,
    head_dim=128, mlp_dim=512, dtype="bfloat16",
  )  # fmt: skip
  config = build.text(
    ConfigDict({"encoder": encoder, "vocabulary": "", "weights": ""})
  )
  like = config.shapes()
  params = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), like)
  save = {"t5x": t5.save_t5x, "hugging face": t5.save_hugging_face}
  save[layout](tmp_path / "t5", params)
  result = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
  largest = max(x.nbytes for x in jax.tree.leaves(params))
  del params
  # Else what is freed is kept, and used again without being seen.
  libc = ctypes.CDLL(None)
  libc.mallopt(-3, 2**16)  # M_MMAP_THRESHOLD
  libc.malloc_trim(0)  # and what other tests have freed goes back
  peak, put, before = [0], jax.device_put, rss_anon()

  def noted(*args, **kwargs):
    peak[0] = max(peak[0], rss_anon() - before)
    return put(*args, **kwargs)

  monkeypatch.setattr(jax, "device_put", noted)
  t5.load(tmp_path / "t5", like)
  print(f"{result / 2**20:.0f} MiB, at most {peak[0] / 2**20:.0f} MiB held")
  assert result < 1.2 * (peak[0] + 2**23)  # it was looked at to the end
  assert peak[0] < result + 4 * largest + 2**24


# --- Writing.


def test_what_is_written_is_read_back_bit_by_bit(tmp_path, text, params):
  config = text(dtype="bfloat16")
  kept = config.shapes()
  params = jax.tree.map(lambda x, like: x.astype(like.dtype), params, kept)
  params["token_embedder"]["embedding"][:] = 0  # not left out, as zarr may
  folder = tmp_path / "new" / "checkpoint_0"
  t5.save_t5x(folder, params)
  loaded = t5.load(folder, kept)
  assert_same(loaded, params)
  assert_same(
    jax.tree.map(lambda x: x.dtype, loaded),
    jax.tree.map(lambda x: x.dtype, params),
  )


def test_what_is_written_is_as_t5x_has_it(tmp_path, params, flat):
  """Read by flax and tensorstore alone, as t5x reads it."""
  t5.save_t5x(tmp_path, params)
  data = (tmp_path / "checkpoint").read_bytes()
  contents = flax.serialization.msgpack_restore(data)
  assert contents["version"] == 3
  assert contents["optimizer"]["state"]["step"] == 0
  target = flax.traverse_util.flatten_dict(
    contents["optimizer"]["target"],
    sep="/",
    is_leaf=lambda _, leaf: "kvstore" in leaf,
  )
  assert target.keys() == flat.keys()
  for name, leaf in target.items():
    if flat[name].ndim > 1:
      assert leaf["kvstore"]["path"] == "target." + name.replace("/", ".")
      leaf["kvstore"]["path"] = str(tmp_path / leaf["kvstore"]["path"])
      leaf = ts.open(ts.Spec(leaf), open=True).result().read().result()
    np.testing.assert_array_equal(leaf, flat[name])


def test_large_arrays_are_in_chunks_that_t5x_would_make():
  for shape in itertools.product((1, 4096, 32128), (4096, 10240)):
    chunks = t5x._chunks(np.broadcast_to(np.float32(0), shape))
    assert 4 * np.prod(chunks) <= 2**26
    assert 4 * np.prod(chunks) > 2**24 or chunks == list(shape)


def test_a_checkpoint_is_not_written_over(tmp_path, params):
  t5.save_t5x(tmp_path, params)
  with pytest.raises(ValueError, match=f"^{tmp_path} has a checkpoint, expec"):
    t5.save_t5x(tmp_path, params)
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="file/run cannot be written: Not a"):
    t5.save_t5x(tmp_path / "file" / "run", params)
