"""Headers that promise no floats, or more than anyone has."""

import json
import math

import flax
import numpy as np
import pytest

from imagen_jax.interop import t5, weights

# --- What holds no weights.

DTYPES = {
  "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8,
  "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip


def write_dtype(path, dtype, shapes):
  """Writes a safetensors file by hand, all of one dtype, its bytes 1."""
  header, end = {}, 0
  for name, shape in shapes.items():
    size = DTYPES[dtype] * math.prod(shape)
    about = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
    header, end = header | {name: about}, end + size
  data = json.dumps(header).encode()
  path.write_bytes(len(data).to_bytes(8, "little") + data + b"\1" * end)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["ours", "t5", "hub"])
def test_what_holds_no_floats_is_refused(tmp_path, like, state, dtype, kind):
  path = tmp_path / "model.safetensors"
  flat = flax.traverse_util.flatten_dict(like, sep="/")
  named = state if kind == "hub" else flat
  write_dtype(path, dtype, {n: list(x.shape) for n, x in named.items()})
  load = weights.load if kind == "ours" else t5.load
  with pytest.raises(ValueError) as caught:
    load(path, like)
  said = str(caught.value)
  assert said.startswith(f"weights {path} are not those of the config's net")
  assert f" as {dtype}[" in said and "floats of 16 bits or more" in said
  assert len(said) < 1000


# --- Sizes that nobody has: no memory is taken, and no time.

LAYERS_KERNEL = "encoder/encoder/mlp/wo/kernel"


def change_zarray(folder, **change):
  """Changes what an array's folder states of it."""
  path = folder / f"target.{LAYERS_KERNEL.replace('/', '.')}" / ".zarray"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.fixture
def scanned(tmp_path, flat, write_t5x):
  """A checkpoint with one array for the wo kernels of all layers."""
  names = [f"encoder/layers_{i}/mlp/wo/kernel" for i in range(3)]
  rest = {n: x for n, x in flat.items() if n not in names}
  kernels = np.stack([flat[name] for name in names], axis=1)
  return write_t5x(tmp_path, rest | {LAYERS_KERNEL: kernels}, set(rest))


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"shape": [56, 5_000_000, 40]}, f"have {LAYERS_KERNEL} of 5000000 layers"),
    ({"shape": [56, 2, 40]}, f"have {LAYERS_KERNEL} of 2 layers, expected 3"),
    ({"shape": [2**62, 3, 40]}, "have encoder/layers_0/mlp/wo/kernel as float"),
    ({"shape": [2**70, 3, 40]}, f"have {LAYERS_KERNEL} damaged: "),
    ({"shape": [56, 3]}, f"have {LAYERS_KERNEL} damaged: "),
    ({"chunks": [2**11, 2**10, 2**11]}, f"have {LAYERS_KERNEL} damaged: its c"),
    ({"chunks": [2**40] * 3}, f"have {LAYERS_KERNEL} damaged: "),
    ({"chunks": [0, 3, 40]}, f"have {LAYERS_KERNEL} damaged: "),
    ({"shape": "[" * 10**6}, f"have {LAYERS_KERNEL} damaged: "),
    ({"dtype": "<i8"}, "have encoder/layers_0/mlp/wo/kernel as int64[56,40]"),
  ],
)
def test_sizes_of_an_array_in_its_folder(scanned, refused, change, said):
  change_zarray(scanned, **change)
  found = refused(scanned).removeprefix(f"weights {scanned} ")
  net = "are not those of the config's net: they "
  assert found.removeprefix(net).startswith(said)


@pytest.mark.parametrize("size", [2**62, 2**70, -1, 0, None, "a", 1.5, []])
@pytest.mark.parametrize("key", ["shape", "chunks"])
def test_sizes_of_an_array_in_the_file(scanned, like, flat, key, size):
  """They are not used, whatever they are."""
  file = scanned / "checkpoint"
  contents = flax.serialization.msgpack_restore(file.read_bytes())
  leaf = contents["optimizer"]["target"]["encoder"]["encoder"]["mlp"]["wo"]
  if size != 2**70:  # which msgpack has not
    leaf["kernel"]["metadata"][key] = [size] * 3
  else:
    leaf["kernel"]["metadata"] = float(size)
  file.write_bytes(flax.serialization.msgpack_serialize(contents))
  found = t5.load(scanned, like)["encoder"]["layers_1"]["mlp"]["wo"]["kernel"]
  np.testing.assert_array_equal(found, flat["encoder/layers_1/mlp/wo/kernel"])
