"""Nets and weights by the paths that configs have of them."""

import pathlib
from typing import Any

import jax.numpy as jnp
from etils import epath

from imagen_jax.interop import diffusers, weights
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.sharding import Placement

PACKAGE = pathlib.Path(__file__).parents[1]


def packaged(path: str) -> epath.Path:
  """Where a path is: "weights/" within the package, hf:// fetched first."""
  if path.startswith("weights/"):
    return epath.Path(PACKAGE / path)
  if path.startswith("hf://"):
    # Of the Hub's client the import alone takes a third of a second.
    from imagen_jax.interop import download

    return download.fetch(path)
  return epath.Path(path).expanduser()  # pathlib would break gs://


def unet(
  *,
  folder: str,
  out_channels: int | None = None,
  remat: tuple[str, ...] = (),
  scan: bool = False,
  dtype: Any = jnp.float32,
) -> UNet:
  """The net that config.json in a folder of diffusers' describes.

  With 3 out_channels it is without the learned variance.
  """
  net = diffusers.unet(diffusers.read_config(packaged(folder)), dtype=dtype)
  outputs = out_channels or net.out_channels
  return net.clone(out_channels=outputs, remat=remat, scan=scan)


def load_net(path: str, like: Any, placement: Placement | None = None) -> Any:
  """A net's weights: exported, of a training run, or of a diffusers' folder.

  In the tree and dtypes of `like` (shapes), and placed.
  """
  where = packaged(path)
  if (where / diffusers.CONFIG).exists():
    return diffusers.load(where, like, placement)
  found = weights.load(where, like)
  return found if placement is None else placement.put(found)
