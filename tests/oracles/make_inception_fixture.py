"""Makes inception.safetensors: features by torch-fidelity's Inception v3.

  python tests/oracles/make_inception_fixture.py

Weights are random, so that none need be downloaded: the oracle is how the net
computes. Images are of 107 pixels, of which every pool has some to choose from.
"""

import importlib
import importlib.metadata
import pathlib
import sys
import tempfile
import types
import zlib

import numpy as np
import safetensors.numpy

PATH = pathlib.Path(__file__).parent / "inception.safetensors"
SIZE = 107  # pixels
TAPS = ("64", "192", "768", "2048", "logits")

# The graph's scopes, and torch-fidelity's modules.
STEM = {
  "conv": "Conv2d_1a_3x3",
  "conv_1": "Conv2d_2a_3x3",
  "conv_2": "Conv2d_2b_3x3",
  "conv_3": "Conv2d_3b_1x1",
  "conv_4": "Conv2d_4a_3x3",
}
BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
TOWERS = {
  "5": {"tower": "branch5x5", "tower_1": "branch3x3dbl"},
  "6": {"tower": "branch7x7", "tower_1": "branch7x7dbl"},
  "6a": {"tower": "branch3x3dbl"},
  "7a": {"tower": "branch3x3", "tower_1": "branch7x7x3"},
  "7": {"tower": "branch3x3", "tower_1": "branch3x3dbl"},
}
LEAVES = {
  "conv2d_params": "conv.weight",
  "batchnorm/gamma": "bn.weight",
  "batchnorm/beta": "bn.bias",
  "batchnorm/moving_mean": "bn.running_mean",
  "batchnorm/moving_variance": "bn.running_var",
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Draws a weight by its name in the graph; activations stay near one."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  normal = rng.standard_normal(shape, np.float32)
  if len(shape) > 1:
    return normal * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
  if name.endswith(("gamma", "variance")):
    return 1 + np.tanh(normal) / 2
  return normal * np.float32(0.1)


def make_images() -> np.ndarray:
  """Makes two images, uint8 [2, 90, 130, 3]: smooth, with edges and noise."""
  y, x = np.mgrid[:90, :130]
  waves = np.sin(np.stack([x / 9, y / 5, (x + y) / 3], -1)) * 90 + 120
  waves[20:50, 30:90] = (250, 10, 60)
  noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3))
  return np.stack([waves, noise]).astype(np.uint8)


def torch_name(name: str) -> str:
  """Returns torch-fidelity's name of a node of the graph."""
  if name.startswith("softmax/"):
    return {"weights": "fc.weight", "biases": "fc.bias"}[name[8:]]
  scope, leaf = next(
    (name[: -len(end) - 1], own)
    for end, own in LEAVES.items()
    if name.endswith(end)
  )
  if scope in STEM:
    return f"{STEM[scope]}.{leaf}"
  block, *parts = scope.split("/")
  label = BLOCKS[int(block.partition("_")[2] or 0)]
  if parts == ["conv"]:
    branch = "branch3x3" if label == "6a" else "branch1x1"
  elif parts[0] == "tower_2":
    branch = "branch_pool"
  else:
    towers = TOWERS.get(label) or TOWERS[label[0]]
    number = int(parts[-1].partition("_")[2] or 0)
    branch = towers[parts[0]]
    if "mixed" in parts:  # the end of a tower in two
      branch += ("_3" if branch.endswith("dbl") else "_2") + "ab"[number]
    else:
      branch += f"_{number + 1}"
  return f"Mixed_{label}.{branch}.{leaf}"


def torch_state(params: dict[str, np.ndarray]) -> dict:
  """Converts parameters by the graph's names to torch-fidelity's state."""
  import torch

  state = {}
  for name, value in params.items():
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
    value = np.ascontiguousarray(value.transpose(axes))
    state[torch_name(name)] = torch.from_numpy(value)
  return state


def fidelity(module: str):
  """Imports one of torch-fidelity's modules.

  The package imports torchvision, which fails beside another build of torch.
  The modules of the net do not need it: they are then imported alone.
  """
  try:
    importlib.import_module("torch_fidelity")
  except RuntimeError:
    bare = types.ModuleType("torch_fidelity")
    files = importlib.metadata.files("torch-fidelity")
    (init,) = (f for f in files if str(f) == "torch_fidelity/__init__.py")
    bare.__path__ = [str(init.locate().parent)]
    sys.modules["torch_fidelity"] = bare
  return importlib.import_module(f"torch_fidelity.{module}")


def run(
  params: dict[str, np.ndarray], images: np.ndarray, size: int
) -> dict[str, np.ndarray]:
  """Computes torch-fidelity's features of uint8 images, resized to size."""
  import torch

  net = fidelity("feature_extractor_inceptionv3").FeatureExtractorInceptionV3
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "weights.pth"
    torch.save({**torch_state(params)}, path)
    made = net("inception", list(TAPS), str(path))
  made.INPUT_IMAGE_SIZE = size
  with torch.no_grad():
    found = made(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  return dict(zip(TAPS, (f.numpy() for f in found), strict=True))


def resized(images: np.ndarray, size: int) -> np.ndarray:
  """Resizes uint8 images [B, H, W, 3] as torch-fidelity does."""
  import torch

  resize = fidelity("interpolate_compat_tensorflow")
  x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
  y = resize.interpolate_bilinear_2d_like_tensorflow1x(
    x, size=(size, size), align_corners=False
  )
  return y.numpy().transpose(0, 2, 3, 1)


def shapes() -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the graph's constants by name."""
  import flax.traverse_util

  from imagen_jax.interop.inception import params_like

  flat = flax.traverse_util.flatten_dict(params_like(), sep="/")
  return {name: leaf.shape for name, leaf in flat.items()}


def make_fixture() -> dict[str, np.ndarray]:
  """Makes the features of all taps."""
  params = {name: weight(name, shape) for name, shape in shapes().items()}
  return run(params, make_images(), SIZE)


if __name__ == "__main__":
  safetensors.numpy.save_file(make_fixture(), PATH)
