"""Nets, text encoders and weights by the paths that configs have of them."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax.numpy as jnp
from etils import epath

from imagen_jax.files import expand
from imagen_jax.interop import diffusers, t5, weights
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.sharding import Placement
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.settings import NoText, Text
from imagen_jax.text.tokenizer import Tokenizer

PACKAGE = pathlib.Path(__file__).parents[1]
SCHEME = "package://"
# What the package ships, as configs of 0.1 name it.
_OLD_FOLDER = "weights/"


def packaged(path: str) -> epath.Path:
  """Finds what a config's path names, and fetches it if it is on the Hub.

  Args:
    path: a path of the file system, which may begin with ~; of a store, such
      as gs://; hf:// for the Hub; package://weights/FILE for a file of this
      package. Without a file of that name, weights/FILE is the package's too:
      older configs have it.

  Raises:
    ValueError: the package has no such file, or the Hub gives none.
  """
  if path.startswith(SCHEME):
    return _in_package(path)
  if path.startswith("hf://"):
    # Of the Hub's client the import alone takes a third of a second.
    from imagen_jax.interop import download

    return download.fetch(path)
  found = epath.Path(expand(path))  # pathlib would break gs://
  if path.startswith(_OLD_FOLDER) and not found.exists():
    shipped = PACKAGE / path
    return epath.Path(shipped) if _is_shipped(shipped) else found
  return found


def _in_package(path: str) -> epath.Path:
  found = PACKAGE / path.removeprefix(SCHEME)
  if not _is_shipped(found):
    names = sorted(file.name for file in (PACKAGE / _OLD_FOLDER).iterdir())
    raise ValueError(
      f"{path} is no file of the package, expected {SCHEME}{_OLD_FOLDER} and "
      f"one of {', '.join(names)}"
    )
  return epath.Path(found)


def _is_shipped(path: pathlib.Path) -> bool:
  return path.parent == PACKAGE / _OLD_FOLDER and path.is_file()


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
    """Reads the folder's config.json; ValueError if it cannot be used."""
    config = diffusers.read_config(packaged(self.folder))
    net = diffusers.unet(config, dtype=self.dtype)
    outputs = self.out_channels or net.out_channels
    return net.clone(
      out_channels=outputs,
      remat=self.remat,
      scan=self.scan,
      precision=self.precision,
    )


def check_net(path: str, like: Any) -> None:
  """Checks a net's weights as far as that takes no time.

  Args:
    path: as for load_net.
    like: the shapes of the net's parameters.

  Raises:
    ValueError: there are no weights, or their names, shapes or dtypes are not
      those of the net. A run's checkpoint is only looked for.
  """
  where = packaged(path)
  if (where / diffusers.CONFIG).exists():
    diffusers.tensors(where, like)
  else:
    weights.check_file(where, like)


def load_net(path: str, like: Any, placement: Placement | None = None) -> Any:
  """A net's weights: exported, of a training run, or of a diffusers' folder.

  In the tree and dtypes of `like` (shapes), and placed.
  """
  where = packaged(path)
  if (where / diffusers.CONFIG).exists():
    return diffusers.load(where, like, placement)
  found = weights.load(where, like)
  return found if placement is None else placement.put(found)


def check_text(text: Text | NoText) -> Tokenizer | None:
  """Checks the files of config.text as far as that takes no time.

  Returns:
    The tokenizer of its vocabulary; None without text.

  Raises:
    ValueError: a file is missing or damaged, the weights are those of another
      encoder, or the vocabulary is not the one that they were trained with.
  """
  if isinstance(text, NoText):
    return None
  found, where = tokenizer(text), packaged(text.weights)
  t5.check_weights(where, text.encoder, _shapes(text))
  t5.check_vocabulary(where, text, found)
  return found


def vocabulary_of(text: Text) -> str | None:
  """Returns the fingerprint of the vocabulary that an encoder belongs to.

  The one that its weights record, else that of config.text.vocabulary; None if
  that is not there.

  Raises:
    ValueError: the weights cannot be read, or the vocabulary is not theirs.
  """
  where = packaged(text.weights)
  t5.check_weights(where, text.encoder, _shapes(text))
  recorded = t5.recorded_vocabulary(where)
  try:
    found = tokenizer(text)
  except ValueError:
    return recorded
  t5.check_vocabulary(where, text, found)
  return found.fingerprint


def tokenizer(text: Text | NoText) -> Tokenizer | None:
  """Returns the tokenizer whose vocabulary config.text names; None without."""
  if isinstance(text, NoText):
    return None
  path = packaged(text.vocabulary)
  return Tokenizer(path, text.length, lowercase=text.lowercase)


def load_text(text: Text | NoText, placement: Placement | None = None) -> Any:
  """Loads the weights of config.text's encoder, ours or published ones."""
  if isinstance(text, NoText):
    return {}
  return t5.load(packaged(text.weights), _shapes(text), placement)


def text_encoder(text: Text | NoText, params: Any) -> TextEncoder | None:
  """Returns the encoder of prompts of config.text, with the given weights."""
  if isinstance(text, NoText):
    return None
  return TextEncoder(text.embedder, params, tokenizer(text), text.batch_size)


def encoder_sizes(path: str) -> dict[str, int]:
  """Reads the sizes of T5 from the config.json beside its weights.

  Args:
    path: of the weights, as in a config. From the Hub only config.json is
      fetched.

  Returns:
    Fields of T5Encoder; none if there is no config.json.

  Raises:
    ValueError: the file cannot be read, or describes no encoder of T5 v1.1.
  """
  if path.startswith("hf://"):
    from imagen_jax.interop import download

    path = str(download.fetch(download.beside(path, t5.CONFIG)).parent)
  return t5.read_sizes(packaged(path)) or {}


@functools.lru_cache(maxsize=8)
def _shapes(text: Text) -> Any:
  """Returns text.shapes(), which takes T5-XXL a quarter of a second."""
  return text.shapes()
