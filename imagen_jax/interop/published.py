"""Nets, text encoders and weights by the paths that configs have of them."""

import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
from etils import epath

from imagen_jax.interop import diffusers, t5, weights
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.sharding import Placement
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.settings import Text
from imagen_jax.text.tokenizer import Tokenizer

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


@dataclasses.dataclass(frozen=True)
class UNetFolder:
  """The net that config.json in a folder of diffusers' describes.

  Attributes:
    folder: a path, or hf:// with the repository's.
    out_channels: 3 leaves out the learned variance; None is as in the folder.
    remat: a policy for each level, as UNet's.
    scan: whether equal blocks are compiled as one loop.
    dtype: of the products and convolutions.
    precision: of products of float32, as UNet's.
  """

  folder: str
  out_channels: int | None = None
  remat: tuple[str, ...] = ()
  scan: bool = False
  dtype: Any = jnp.float32
  precision: str = "highest"

  def unet(self) -> UNet:
    """Reads the folder's config.json; ValueError if it cannot be read."""
    config = diffusers.read_config(packaged(self.folder))
    net = diffusers.unet(config, dtype=self.dtype)
    outputs = self.out_channels or net.out_channels
    return net.clone(
      out_channels=outputs,
      remat=self.remat,
      scan=self.scan,
      precision=self.precision,
    )


def load_net(path: str, like: Any, placement: Placement | None = None) -> Any:
  """A net's weights: exported, of a training run, or of a diffusers' folder.

  In the tree and dtypes of `like` (shapes), and placed.
  """
  where = packaged(path)
  if (where / diffusers.CONFIG).exists():
    return diffusers.load(where, like, placement)
  found = weights.load(where, like)
  return found if placement is None else placement.put(found)


def tokenizer(text: Text) -> Tokenizer:
  """Returns the tokenizer whose vocabulary config.text names."""
  path = packaged(text.vocabulary)
  return Tokenizer(path, text.length, lowercase=text.lowercase)


def load_text(text: Text, placement: Placement | None = None) -> Any:
  """Loads the weights of config.text's encoder, ours or published ones."""
  return t5.load(packaged(text.weights), text.shapes(), placement)


def text_encoder(text: Text, params: Any) -> TextEncoder:
  """Returns the encoder of prompts of config.text, with the given weights."""
  return TextEncoder(text.embedder, params, tokenizer(text), text.batch_size)
