"""Nets, text encoders and weights, loaded by their paths in configs."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax.numpy as jnp
from etils import epath

from imagen_jax.files import expand
from imagen_jax.interop import bert, clip, diffusers, encoders, hub, t5, weights
from imagen_jax.nets.bert import BertEncoder
from imagen_jax.nets.clip_text import ClipTextEncoder
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.nets.unet import UNet
from imagen_jax.parallel.sharding import Placement
from imagen_jax.text.encoder import Encoder, TextEncoder
from imagen_jax.text.pieces import SentencePieces, WordPieces
from imagen_jax.text.settings import AnyText, NoText, StoredText, Text
from imagen_jax.text.tokenizer import Tokenizer

PACKAGE = pathlib.Path(__file__).parents[1]
SCHEME = "package://"
# The module that reads the weights of each kind of text encoder.
_FORMATS = {T5Encoder: t5, BertEncoder: bert, ClipTextEncoder: clip}
# The folder of shipped files, as configs of version 0.1 name it.
_OLD_FOLDER = "weights/"


def resolve(path: str) -> epath.Path:
  """Resolves a config's path, and fetches it if it is on the Hub.

  Args:
    path: a local path, which may begin with ~; a path of a store, such as
      gs://; hf:// for the Hub; or package://weights/FILE for a file of this
      package. If no local file weights/FILE exists, it means the package's
      file, as in older configs.

  Raises:
    ValueError: the package has no such file, or it cannot be fetched.
  """
  if path.startswith(SCHEME):
    return _in_package(path)
  if path.startswith("hf://"):
    # Importing the Hub's client takes a third of a second.
    from imagen_jax.interop import download

    return download.fetch(path)
  found = epath.Path(expand(path))  # pathlib would break gs://
  if path.startswith(_OLD_FOLDER) and not found.exists():
    shipped = PACKAGE / path
    return epath.Path(shipped) if _is_shipped(shipped) else found
  return found


def _in_package(path: str) -> epath.Path:
  """Resolves a package:// path."""
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
  """Describes a net by the config.json in a `unet` folder of diffusers.

  Attributes:
    folder: a path, or hf:// with the repository's path.
    out_channels: 3 leaves out the learned variance; None follows config.json.
    remat: a policy for each level, as in UNet.
    scan: compiles equal blocks as one loop.
    dtype: of matrix products and convolutions.
    precision: of products of float32, as in UNet.
  """

  folder: str
  out_channels: int | None = None
  remat: tuple[str, ...] = ()
  scan: bool = False
  dtype: Any = jnp.float32
  precision: str = "highest"

  def unet(self) -> UNet:
    """Builds the net; raises ValueError if config.json cannot be used."""
    config = diffusers.read_config(resolve(self.folder))
    net = diffusers.unet(config, dtype=self.dtype)
    outputs = self.out_channels or net.out_channels
    return net.clone(
      out_channels=outputs,
      remat=self.remat,
      scan=self.scan,
      precision=self.precision,
    )


def check_net(path: str, like: Any) -> None:
  """Checks a net's weights without reading them.

  Args:
    path: as in load_net. Of a training run, only the checkpoint's existence is
      checked.
    like: the shapes of the net's parameters.

  Raises:
    ValueError: there are no weights, or their names, shapes or dtypes differ
      from the net's.
  """
  where = resolve(path)
  if (where / diffusers.CONFIG).exists():
    diffusers.tensors(where, like)
  else:
    weights.check_file(where, like)


def load_net(path: str, like: Any, placement: Placement | None = None) -> Any:
  """Loads a net's weights.

  Args:
    path: an exported file, a training run or a `unet` folder of diffusers, as
      in a config.
    like: the tree, shapes and dtypes of the parameters.
    placement: how to shard them; None leaves them as they are loaded.
  """
  where = resolve(path)
  if (where / diffusers.CONFIG).exists():
    return diffusers.load(where, like, placement)
  return weights.load(where, like, placement)


def check_text(text: AnyText) -> Tokenizer | None:
  """Checks the files of config.text without reading the weights.

  Of stored embeddings their folder is checked. The encoder's files need not be
  there.

  Returns:
    The tokenizer of its vocabulary; None without text, or with stored
    embeddings.

  Raises:
    ValueError: a file is missing or damaged, the weights belong to another
      encoder, they were trained with another vocabulary, or the embeddings are
      of another encoder.
  """
  if isinstance(text, NoText):
    return None
  if isinstance(text, StoredText):
    from imagen_jax.interop import embedded

    embedded.check(text)
    return None
  found, where = tokenizer(text), resolve(text.weights)
  _format(text).check_weights(where, text.encoder, _shapes(text))
  _check_vocabulary(where, text, found)
  return found


def _format(text: Text) -> Any:
  return _FORMATS[type(text.encoder)]


def _check_vocabulary(where: epath.Path, text: Text, found: Tokenizer) -> None:
  """Raises ValueError if an encoder was trained with another vocabulary."""
  if _format(text) is t5:  # whose weights may record theirs
    t5.check_vocabulary(where, text, found)
  else:
    encoders.check_vocabulary(text, found, _format(text).VOCABULARIES)


def vocabulary_of(text: Text) -> str | None:
  """Returns the fingerprint of a T5 encoder's vocabulary.

  Returns:
    The fingerprint of config.text.vocabulary. If that file cannot be used, the
    fingerprint that the weights record, or None if they record none.

  Raises:
    ValueError: the weights cannot be read, or were trained with another
      vocabulary.
  """
  where = resolve(text.weights)
  t5.check_weights(where, text.encoder, _shapes(text))
  recorded = t5.recorded_vocabulary(where)
  try:
    found = tokenizer(text)
  except ValueError:
    return recorded
  t5.check_vocabulary(where, text, found)
  return found.fingerprint


def tokenizer(text: AnyText) -> Any:
  """Builds what turns captions into the tokens of batches.

  Returns:
    The Tokenizer of config.text.vocabulary, the stored Embeddings, or None
    without text.
  """
  if isinstance(text, NoText):
    return None
  if isinstance(text, StoredText):
    # Imported here: sampling does not need what reads embeddings.
    from imagen_jax.interop import embedded

    return embedded.open_embeddings(text)
  path = resolve(text.vocabulary)
  parse = SentencePieces
  if not isinstance(text.encoder, T5Encoder):
    parse = functools.partial(WordPieces, special=text.encoder.special)
  return Tokenizer(path, text.length, lowercase=text.lowercase, parse=parse)


def load_text(text: AnyText, placement: Placement | None = None) -> Any:
  """Loads the weights of config.text's encoder, exported here or published.

  With stored embeddings it loads what replaces them, the null text.
  """
  if isinstance(text, NoText):
    return {}
  if isinstance(text, StoredText):
    from imagen_jax.interop import embedded

    return embedded.load_null(text, placement)
  load = _format(text).load
  return load(resolve(text.weights), _shapes(text), placement)


def text_encoder(text: Text | NoText, params: Any) -> TextEncoder | None:
  """Builds config.text's encoder of prompts with these weights."""
  if isinstance(text, NoText):
    return None
  return TextEncoder(text.embedder, params, tokenizer(text), text.batch_size)


def encoder_sizes(path: str, encoder: type[Encoder]) -> dict[str, int]:
  """Reads the sizes of a text encoder from the config.json beside its weights.

  Args:
    path: of the weights, as in a config. Only config.json is fetched from the
      Hub.
    encoder: the class of the encoder.

  Returns:
    Fields of the encoder; empty if there is no config.json of its kind.

  Raises:
    ValueError: the file cannot be read, or describes another kind's encoder.
  """
  if path.startswith("hf://"):
    from imagen_jax.interop import download

    path = str(download.fetch(download.beside(path, hub.CONFIG)).parent)
  return _FORMATS[encoder].SIZES.read(resolve(path)) or {}


@functools.lru_cache(maxsize=8)
def _shapes(text: Text) -> Any:
  """Caches text.shapes(), which takes a quarter of a second for T5-XXL."""
  return text.shapes()
