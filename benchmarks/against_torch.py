"""Compares the seconds of a forward pass with diffusers and transformers.

  pip install -e '.[oracles]'
  python benchmarks/against_torch.py [--rounds=5] [--compile]

The nets are DeepFloyd IF-I-M at its real size, on one 64x64 image, and T5 v1.1
base, on one prompt of 77 tokens. Both run in float32 and in bfloat16. All
libraries run in one process on the same random weights and inputs. They
alternate in every round, so that other load slows all of them. The median of
the rounds is printed. Compilation is timed separately. --compile also times
torch.compile, which needs a C++ compiler. The numbers are in README.md.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
from diffusers import UNet2DConditionModel
from transformers import T5Config, T5EncoderModel

from imagen_jax.interop import diffusers, t5
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.types import Conditioning, TextEmbedding

CORES = len(os.sched_getaffinity(0))
MANIFEST = "tests/interop/deepfloyd_if/IF-I-M.json"
LENGTH = 77
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(call: Callable[[], object]) -> float:
  """Measures the seconds of a call."""
  begun = time.monotonic()
  call()
  return time.monotonic() - begun


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Draws tensors with a variance that preserves the size of activations."""
  rng = np.random.default_rng(0)
  state = {}
  for name, shape in shapes.items():
    value = rng.standard_normal(shape, np.float32)
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 100
    state[name] = value / np.sqrt(fan_in, dtype=np.float32)
    if "norm" in name and name.endswith("weight"):
      state[name] += 1
  return state


def unets(dtype: str, folder: pathlib.Path, compiled: bool):
  """Builds IF-I-M in both; returns forward passes by library."""
  path = pathlib.Path(__file__).parents[1] / MANIFEST
  manifest = json.loads(path.read_text())
  config = manifest["config"] | {"_class_name": "UNet2DConditionModel"}
  file = folder / f"{diffusers.STEM}.safetensors"
  if not file.exists():
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(
      random_state(manifest["params"]), file, {"format": "pt"}
    )
  rng = np.random.default_rng(1)
  z = rng.standard_normal((1, 64, 64, 3), np.float32)
  tokens = rng.standard_normal((1, LENGTH, 4096), np.float32) * 0.1
  theirs = UNet2DConditionModel.from_pretrained(
    folder, torch_dtype=TORCH_DTYPES[dtype], use_safetensors=True
  ).eval()
  inputs = [
    torch.tensor(x).to(TORCH_DTYPES[dtype])
    for x in (z.transpose(0, 3, 1, 2), tokens)
  ]
  run = lambda net: net(inputs[0], 500, encoder_hidden_states=inputs[1]).sample

  net = diffusers.unet(config, dtype=jnp.dtype(dtype))
  text = TextEmbedding(jnp.asarray(tokens), jnp.ones((1, LENGTH), bool))
  args = (jnp.asarray(z), jnp.full(1, 500.0), Conditioning(text))
  like = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), like)
  params = diffusers.load(folder, like)
  return sides(theirs, run, net.apply, params, args, compiled)


def encoders(dtype: str, folder: pathlib.Path, compiled: bool):
  """Builds T5 v1.1 base in both; returns forward passes by library."""
  module = T5Encoder(
    vocab_size=32_128, emb_dim=768, num_heads=12, num_encoder_layers=12,
    head_dim=64, mlp_dim=2048, dtype=jnp.dtype(dtype),
  )  # fmt: skip
  ids = np.random.default_rng(2).integers(3, 32_000, (1, LENGTH))
  args = (jnp.asarray(ids, jnp.int32), jnp.ones(ids.shape, bool))
  like = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
  if not (folder / "model.safetensors").exists():
    flat = flax.traverse_util.flatten_dict(like, sep="/")
    shapes = {name: leaf.shape[::-1] for name, leaf in flat.items()}
    state = {n: np.transpose(x) for n, x in random_state(shapes).items()}
    params = flax.traverse_util.unflatten_dict(state, sep="/")
    t5.save_hugging_face(folder, params)
  settings = json.loads((folder / "config.json").read_text())
  theirs = T5EncoderModel.from_pretrained(
    folder, config=T5Config(**settings), dtype=TORCH_DTYPES[dtype]
  ).eval()
  run = lambda net: net(torch.tensor(ids)).last_hidden_state
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), like)
  return sides(theirs, run, module.apply, t5.load(folder, like), args, compiled)


def sides(theirs, run, apply, params, args, compiled):
  """Compiles the forward passes and prints how long that took.

  It also prints the relative difference between the outputs.

  Args:
    theirs: the torch module.
    run: runs the torch module on its inputs.
    apply: our net's apply function.
    params: our net's parameters.
    args: our net's inputs.
    compiled: adds torch.compile.

  Returns:
    {library: a warm forward pass}.
  """
  begun = time.monotonic()
  step = jax.jit(apply).lower({"params": params}, *args).compile()
  print(f"  ours compiled in {time.monotonic() - begun:.1f} s")
  ours = lambda: np.asarray(step({"params": params}, *args), np.float32)
  passes = {"torch": lambda: run(theirs).float().numpy(), "ours": ours}
  if compiled:
    fast = torch.compile(theirs)
    try:
      took = seconds(lambda: run(fast))
      print(f"  torch compiled in {took:.1f} s")
      passes["torch.compile"] = lambda: run(fast).float().numpy()
    except Exception as error:  # any failure of its compiler
      print(f"  torch.compile does not work here: {type(error).__name__}")
  outputs = {name: call() for name, call in passes.items()}
  out = outputs["torch"]
  out = out.transpose(0, 2, 3, 1) if out.ndim == 4 else out
  apart = np.sqrt(np.mean((out - outputs["ours"]) ** 2) / np.mean(out**2))
  print(f"  relative difference of ours to torch {apart:.1e}")
  return passes


def main() -> None:
  """Prints the median seconds of each net, dtype and library."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--compile", action="store_true")
  args = parser.parse_args()
  torch.set_num_threads(CORES)
  torch.set_grad_enabled(False)
  print(f"{CORES} threads; torch {torch.__version__}, jax {jax.__version__}")
  with tempfile.TemporaryDirectory() as name:
    for what, make in (("IF-I-M", unets), ("T5 base", encoders)):
      folder = pathlib.Path(name) / what.replace(" ", "_")
      folder.mkdir()
      for dtype in TORCH_DTYPES:
        print(f"{what} in {dtype}")
        passes = make(dtype, folder, args.compile)
        times = {side: [] for side in passes}
        for _ in range(args.rounds):
          for side, call in passes.items():
            times[side].append(seconds(call))
        base = statistics.median(times["torch"])
        for side, found in times.items():
          median = statistics.median(found)
          print(f"  {side:14} {median:7.3f} s, {median / base:5.2f} of torch's")


if __name__ == "__main__":
  main()
