"""Measures imagen_jax's side of a row of peers.py, in a process of its own."""

import io
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers
import safetensors.numpy
from PIL import Image

from imagen_jax.data.pipeline import make_batches
from imagen_jax.interop import diffusers, t5
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel import compiler
from imagen_jax.parallel.flops import count_flops
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import Conditioning, TextEmbedding

MANIFESTS = pathlib.Path(__file__).parents[1] / "tests/interop/deepfloyd_if"
DTYPE = {"cpu": jnp.float32, "gpu": jnp.bfloat16}
Work = tuple[Callable[[], Any], dict[str, Any]]


def size_of(params: Any) -> int:
  """Returns the number of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def on_device(known: dict[str, Any], device: str) -> dict[str, Any]:
  """Adds the peak memory of a GPU; a CPU's is that of the process."""
  if device == "cpu":
    return known
  stats = jax.devices()[0].memory_stats
  return known | {"peak_bytes": lambda: stats()["peak_bytes_in_use"]}


def stage(device: str) -> tuple[Stage, Any]:
  """Returns the small stage and its weights."""
  net = UNet(
    image_size=peers.SIZE, embed_dim=40, channel_mult=(1, 2, 3),
    num_res_blocks=2, attn_resolutions=(8,), text_cross_attn_res=(16, 8),
    per_head_channels=20, text_width=128, norm_groups=8, dtype=DTYPE[device],
  )  # fmt: skip
  made = Stage(net, peers.SIZE)
  length, dim = peers.TEXT
  init = lambda key: made.init(key, text_length=length, text_dim=dim)
  return made, jax.jit(init)(jax.random.key(0))


def prompts(rows: int) -> TextEmbedding:
  """Returns random embeddings of prompts."""
  rng = np.random.default_rng(0)
  tokens = rng.standard_normal((rows, *peers.TEXT), np.float32)
  return TextEmbedding(jnp.asarray(tokens), jnp.ones(tokens.shape[:2], bool))


def train(device: str) -> Work:
  """Trains the small net on one batch with Adam."""
  made, params = stage(device)
  optimizer, text = optax.adam(1e-4), prompts(peers.BATCH)
  images = jnp.zeros((peers.BATCH, peers.SIZE, peers.SIZE, 3))

  def step(params, moments, key):
    draws = made.draw(key, peers.BATCH)
    loss = lambda params: made.loss(params, draws, images, text)[0].mean()
    value, grads = jax.value_and_grad(loss)(params)
    updates, moments = optimizer.update(grads, moments)
    return optax.apply_updates(params, updates), moments, value

  state = [params, optimizer.init(params)]
  flops = count_flops(step, *state, jax.random.key(1))
  jitted = compiler.jit(step, donate_argnums=(0, 1))

  def work():
    state[0], state[1], value = jitted(*state, jax.random.key(1))
    jax.block_until_ready(value)

  known = {"parameters": size_of(params), "flops": flops, "items": peers.BATCH}
  return work, on_device(known, device)


def sample(device: str, rows: int) -> Work:
  """Samples images with guidance from the small net."""
  made, params = stage(device)
  sampling = Sampling(steps=peers.STEPS, guidance=3.0)
  keys, text = jax.random.split(jax.random.key(0), rows), prompts(rows)
  work = lambda: jax.block_until_ready(
    made.sample(params, keys, text, sampling=sampling)
  )
  # Of one step: prompts and the null text.
  z = jnp.zeros((2 * rows, peers.SIZE, peers.SIZE, 3))
  cond, time = Conditioning(prompts(2 * rows)), jnp.zeros(2 * rows)
  apply = lambda params: made.net.apply({"params": params}, z, time, cond)
  flops = peers.STEPS * count_flops(apply, params)
  known = {"parameters": size_of(params), "flops": flops, "items": rows}
  return work, on_device(known, device)


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


def deepfloyd_if(device: str, name: str, folder: pathlib.Path) -> Work:
  """Evaluates a net of DeepFloyd IF for a guided step of one image."""
  manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
  config = manifest["config"] | {"_class_name": "UNet2DConditionModel"}
  file = folder / f"{diffusers.STEM}.safetensors"
  if not file.exists():
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(
      random_state(manifest["params"]), file, {"format": "pt"}
    )
  net = diffusers.unet(config, dtype=DTYPE[device])
  rng = np.random.default_rng(1)
  tokens = rng.standard_normal((2, peers.TOKENS, 4096), np.float32) * 0.1
  text = TextEmbedding(jnp.asarray(tokens), jnp.ones((2, peers.TOKENS), bool))
  z = jnp.asarray(rng.standard_normal((2, 64, 64, 3), np.float32))
  args = (z, jnp.full(2, 500.0), Conditioning(text))
  like = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
  return applied(net.apply, like, lambda x: diffusers.load(folder, x), args,
                 device)  # fmt: skip


def t5_base(device: str, folder: pathlib.Path) -> Work:
  """Encodes one prompt with T5 v1.1 base."""
  module = T5Encoder(
    vocab_size=32_128, emb_dim=768, num_heads=12, num_encoder_layers=12,
    head_dim=64, mlp_dim=2048, dtype=DTYPE[device],
  )  # fmt: skip
  ids = np.random.default_rng(2).integers(3, 32_000, (1, peers.TOKENS))
  args = (jnp.asarray(ids, jnp.int32), jnp.ones(ids.shape, bool))
  like = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
  if not (folder / "model.safetensors").exists():
    flat = flax.traverse_util.flatten_dict(like, sep="/")
    shapes = {name: leaf.shape[::-1] for name, leaf in flat.items()}
    state = {n: np.transpose(x) for n, x in random_state(shapes).items()}
    t5.save_hugging_face(
      folder, flax.traverse_util.unflatten_dict(state, sep="/")
    )
  return applied(module.apply, like, lambda x: t5.load(folder, x), args, device)


def applied(apply, like, load, args, device: str) -> Work:
  """Returns the forward pass of a net with weights from a file."""
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, DTYPE[device]), like
  )
  params = {"params": jax.device_put(load(like))}
  jitted = compiler.jit(apply)
  flops = count_flops(apply, params, *args)
  known = {"parameters": size_of(params), "flops": flops, "items": 1}
  work = lambda: jax.block_until_ready(jitted(params, *args))
  return work, on_device(known, device)


def jpegs(size: int, folder: pathlib.Path) -> Work:
  """Reads batches of JPEGs of 640x480, resized; 256 with 64 beside it."""
  files = sorted(folder.glob("*.jpg"))
  for seed in range(len(files), 8):
    rng = np.random.default_rng(seed)
    image = np.zeros((480, 640, 3))
    for side, share in ((80, 0.5), (10, 0.3), (2, 0.1)):
      shape = (480 // side, 640 // side, 3)
      small = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
      image += share * np.asarray(small.resize((640, 480)), np.float64)
    file = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(file, "jpeg", quality=90)
    (folder / f"{seed}.jpg").write_bytes(file.getvalue())
  records = [
    {"image": file.read_bytes()} for file in sorted(folder.glob("*.jpg"))
  ]
  batches = make_batches(
    records * 64, tokenize=None, global_batch=32, seed=0, size=size,
    lowres_size=64 if size == 256 else None,
  )  # fmt: skip
  return lambda: [next(batches) for _ in range(4)], {"items": 4 * 32}


def make(row: str, device: str, folder: pathlib.Path) -> Work:
  """Returns the work of a row."""
  if row == "train":
    return train(device)
  if row.startswith("sample"):
    return sample(device, int(row.removeprefix("sample")))
  if row.startswith("IF"):
    return deepfloyd_if(device, row, folder)
  if row == "t5-base":
    return t5_base(device, folder)
  return jpegs(int(row.removeprefix("jpeg")), folder)


if __name__ == "__main__":
  row, device, folder, calls = sys.argv[1:]
  peers.report(lambda: make(row, device, pathlib.Path(folder)), int(calls))
