"""Checksums: the same on any devices, and another for any change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.checkpoints.verify import checksums, kinds

DTYPES = ("float32", "bfloat16", "int32", "int8", "uint16", "bool", "float16")


def make(dtype: str, shape=(16, 8, 4)) -> np.ndarray:
  rng = np.random.default_rng(0)
  return (100 * rng.normal(size=shape)).astype(jnp.dtype(dtype))


def checksum(x) -> int:
  return checksums({"x": x})["x"]


def murmur(x: np.ndarray) -> np.ndarray:
  """MurmurHash3's fmix32, in Python's integers."""
  found = []
  for h in map(int, x):
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    found.append(h ^ h >> 16)
  return np.array(found, np.uint64)


def test_it_is_the_sum_that_it_says():
  x = make("float32")
  places = murmur(np.arange(x.size))
  wanted = murmur(places ^ x.reshape(-1).view(np.uint32)).sum() % 2**32
  assert checksum(x) == wanted


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_same_on_any_devices(dtype):
  x = make(dtype)
  mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
  for axes in ((), ("a", "b"), ("b", "a"), (None, ("a", "b")), ("b",)):
    spread = NamedSharding(mesh, PartitionSpec(*axes))
    assert checksum(jax.device_put(x, spread)) == checksum(x)
  with jax.set_mesh(mesh):
    assert checksum(jax.device_put(x, jax.devices()[3])) == checksum(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_counts(dtype):
  x = make(dtype)
  bits = 1 if dtype == "bool" else 8
  for byte in (0, 1, 77, x.nbytes - 1):
    for bit in range(bits):
      raw = bytearray(x.tobytes())
      raw[byte] ^= 1 << bit
      other = np.frombuffer(bytes(raw), x.dtype).reshape(x.shape)
      assert checksum(other) != checksum(x)


def test_places_count():
  # Values whose low bits are zero, as weights' are that begin as ones.
  x = np.zeros((64, 64), np.float32)
  x[:32] = 1.0
  assert len({checksum(np.roll(x, n, axis=0)) for n in range(64)}) == 64
  assert checksum(x) != checksum(x.T)


def test_arrays_by_path_and_kind():
  tree = {"a": [np.zeros((2, 3), np.float32), jnp.ones((), jnp.bfloat16)]}
  assert kinds(tree) == {"a/0": "float32[2,3]", "a/1": "bfloat16[]"}
  assert checksums(tree).keys() == kinds(tree).keys()
