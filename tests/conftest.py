"""Sets the tests' machine, before anything imports JAX: a CPU as 8 devices."""

import os
import pathlib
import runpy
import sys

import numpy as np
import pytest

assert "jax" not in sys.modules, "a pytest plugin imported jax too early"

# Compiling takes most of the tests' time; what it gives need not be fast.
QUICK = "--xla_backend_optimization_level=0"
QUICK += " --xla_llvm_disable_expensive_passes=true"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["IMAGEN_JAX_COMPILE_CACHE"] = "off"  # tests have their own
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"


def pytest_configure(config):
  """Keeps compiled programs from one run to the next, in pytest's cache.

  JAX's key holds the program, the device and its own version, and what it
  cannot read it compiles again. `pytest --cache-clear` empties it.
  """
  cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
  if cache is not None:
    # Of each worker of its own: one must not read what another half wrote.
    name = "jax" + os.environ.get("PYTEST_XDIST_WORKER", "")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache.mkdir(name))
    # Small programs too: there are many processes that start with the same.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_collection_modifyitems(items):
  """The verbs' tests first: by their end one worker would be left alone."""
  items.sort(key=lambda item: "verbs" not in item.path.parts)


@pytest.fixture(scope="session")
def storage():
  """A stand-in for Google Cloud Storage, with an empty bucket `bucket`."""
  path = pathlib.Path(__file__).with_name("cloud_storage.py")
  server = runpy.run_path(str(path))["CloudStorage"]
  storage = server()
  storage.buckets["bucket"] = {}
  yield storage
  storage.close()


@pytest.fixture(scope="session")
def random_params():
  """params(module, *inputs): normals, none of them zero as heads begin.

  From numpy and the shapes alone: running the initialisers takes longer.
  """
  import jax  # not before pytest_configure

  def params(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)

    def leaf(path, shape):
      name = path[-1].key
      inputs = np.prod(shape.shape[:-1]) if name == "kernel" else 10.0
      values = rng.normal(size=shape.shape) / np.sqrt(inputs)
      return (values + (name == "scale")).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)

  return params


@pytest.fixture(scope="session")
def small_if():
  """config.json of a small net like IF-I, for 8x8 images and text of 16."""
  return {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "attention_head_dim": 8,
    "block_out_channels": [8, 16],
    "cross_attention_dim": 32,
    "cross_attention_norm": "group_norm",
    "down_block_types": [
      "ResnetDownsampleBlock2D",
      "SimpleCrossAttnDownBlock2D",
    ],
    "encoder_hid_dim": 16,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": 4,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 8,
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
  }
