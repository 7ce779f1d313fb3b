"""Files of the Hugging Face Hub by paths such as hf://OWNER/REPO/unet.

A path without a folder is the repository itself, as hf://OWNER/REPO@REVISION.

They come with the user's own token (HF_TOKEN, or what `hf auth login` keeps)
and stay in the Hub's cache. Of a folder only safetensors, JSON and vocabularies
are asked for, and no variants of theirs such as model.fp16.safetensors.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import threading
from collections.abc import Iterator

import huggingface_hub
from absl import logging
from etils import epath
from huggingface_hub import HfUri, errors

from imagen_jax.files import expand
from imagen_jax.interop import hub, tensors, weights
from imagen_jax.interop.tensors import few

SCHEME = "hf://"
FORM = "hf://OWNER/REPO/PATH or hf://OWNER/REPO@REVISION/PATH"
_PATTERNS = set("*?[]\\")  # the Hub's client would take a path for many
_ENDINGS = ("safetensors", "json", "model")
# By owner and name of a repository, copies of others included.
_IF = re.compile(r"DeepFloyd/.*|.*/IF-I+-.*")
_IF_NOTICE = (
  "The weights of DeepFloyd IF have a licence of their own: for research only, "
  "not commercial, and to be accepted on the model's page on the Hub; weights "
  "converted from them are derivatives under that licence."
)


def parse(url: str) -> HfUri:
  """Parses an hf:// path; a revision may have slashes, as in @refs/pr/1.

  Raises:
    ValueError: the path is of no repository of models, leads out of it, or is
      a pattern.
  """
  try:
    uri = huggingface_hub.parse_hf_uri(url)
    path = url.removeprefix(SCHEME).removesuffix("/")
    path += f"/{uri.revision or 'main'}"
    wrong = {"", ".", ".."} & set(path.split("/")) or _PATTERNS & set(path)
    if uri.type != "model" or wrong or not path.isprintable():
      raise errors.HfUriError(url, "no path within a repository of models")
  except errors.HfUriError as error:
    raise ValueError(
      f"{tensors.shown(url)} names no part of a repository, expected {FORM}"
    ) from error
  return uri


def shown(uri: HfUri) -> str:
  """Returns the hf:// path of a repository's part, as in a config."""
  return uri.to_uri().replace(f"{SCHEME}models/", SCHEME, 1)


def beside(url: str, name: str) -> str:
  """Returns the hf:// path of a file in a folder, or beside a file, of weights.

  ValueError as parse.
  """
  uri = parse(url)
  path = pathlib.PurePosixPath(uri.path_in_repo)
  folder = path.parent if path.suffix in (".safetensors", ".json") else path
  return shown(dataclasses.replace(uri, path_in_repo=str(folder / name)))


def moved(url: str, to: str) -> str:
  """An hf:// path where it lies in a folder of repositories, or by an owner.

  ValueError if `to` is neither, or the folder lacks the repository.
  """
  uri, folder = parse(url), pathlib.Path(expand(to))
  _, _, name = uri.id.partition("/")
  if folder.is_dir():
    if not (folder / name).is_dir():
      raise ValueError(
        f"folder {to} has no {name}, expected a copy of {uri.id}"
      )
    return str(folder / name / uri.path_in_repo)
  try:
    return shown(dataclasses.replace(uri, id=f"{to}/{name}"))
  except errors.HfUriError as error:
    raise ValueError(
      f"{to} is not there, expected a folder with {name} or an owner on the Hub"
    ) from error


@functools.cache
def fetch(url: str) -> epath.Path:
  """The local copy of the file or folder that an hf:// path names.

  With an index of shards come the shards. ValueError if it cannot be had, and
  for pickles, which are not asked for.
  """
  uri = parse(url)
  weights.check_no_pickle(url)
  if _IF.fullmatch(uri.id):
    _tell(_IF_NOTICE)
  within = [f"{_below(uri)}*.{ending}" for ending in _ENDINGS]
  found = _snapshot(uri, [*filter(None, [uri.path_in_repo]), *within])
  if found.is_dir():
    names = [item.name for item in found.iterdir() if not item.is_dir()]
    if not any(name.endswith(("safetensors", "model")) for name in names):
      raise ValueError(_unusable(uri))
  elif not found.exists():
    raise ValueError(_unusable(uri))
  elif ".index." in found.name:
    beside = os.path.dirname(uri.path_in_repo)
    shards = sorted(set(hub.weight_map(found).values()))
    _snapshot(uri, [os.path.join(beside, shard) for shard in shards])
  return found


@functools.cache
def _tell(notice: str) -> None:
  """A warning that is given once."""
  logging.warning(notice)


def _below(uri: HfUri) -> str:
  """Returns what the paths of a folder's files begin with."""
  return f"{uri.path_in_repo}/" if uri.path_in_repo else ""


def _snapshot(uri: HfUri, patterns: list[str]) -> epath.Path:
  """Fetches the files that match; returns where the path in the repo is then.

  One thread at a time.
  """
  below = _below(uri)
  expand(huggingface_hub.constants.HF_HUB_CACHE)  # a home folder is known
  try:
    with _quiet_hub():
      root = huggingface_hub.snapshot_download(
        uri.id,
        revision=uri.revision,
        allow_patterns=patterns,
        # What lies deeper, and files of two dots: variants.
        ignore_patterns=[f"{below}*/*", f"{below}*.*.safetensors"],
      )
  except (errors.EntryNotFoundError, errors.HTTPError, OSError) as error:
    reason = _reason(uri, error)
    raise ValueError(f"{shown(uri)} cannot be fetched: {reason}") from error
  except ImportError as error:  # the Hub's client lacks what a proxy asks for
    raise ValueError(
      f"{shown(uri)} cannot be fetched through a SOCKS proxy (ALL_PROXY or "
      "HTTPS_PROXY) without the package socksio, expected pip install socksio "
      "or an HTTP proxy"
    ) from error
  return epath.Path(root) / uri.path_in_repo


_quiet = threading.Lock()  # for the verbosity is the process's


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
  """Keeps the Hub's client from logging what is raised in a sentence."""
  with _quiet:
    before = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()
    try:
      yield
    finally:
      huggingface_hub.logging.set_verbosity(before)


def _reason(uri: HfUri, error: Exception) -> str:
  """Why something could not be fetched, and what to do about it."""
  if isinstance(error, errors.LocalEntryNotFoundError):
    cause = error.__cause__  # what the Hub said before the cache was asked
    if not isinstance(cause, errors.HfHubHTTPError):
      return "the Hub cannot be reached, and the cache has no copy"
    error = cause
  if isinstance(error, errors.GatedRepoError):
    return (
      "it is gated, expected its licence to be accepted on its page on the Hub "
      "and a token of who did (HF_TOKEN, or `hf auth login`)"
    )
  if isinstance(error, errors.RepositoryNotFoundError):
    return f"the Hub has no {uri.id} that your token, if any, may read"
  if isinstance(error, errors.RevisionNotFoundError):
    return f"{uri.id} has no revision {uri.revision}"
  if not isinstance(error, errors.HfHubHTTPError):
    return str(error).split("\n")[0]
  status = error.response.status_code
  if status in (401, 403):
    return f"the Hub does not accept your token for {uri.id}"
  return f"the Hub answered {status}"


def _unusable(uri: HfUri) -> str:
  """Says what a repository has at a path, other than weights to read."""
  api = huggingface_hub.HfApi()
  try:
    with _quiet_hub():
      files = api.list_repo_files(uri.id, revision=uri.revision)
  except (errors.HTTPError, OSError):
    return f"{shown(uri)} is not there"
  path = pathlib.PurePosixPath(uri.path_in_repo)
  for folder in (path, *path.parents):
    below = [pathlib.PurePosixPath(file) for file in files]
    below = [file for file in below if file.is_relative_to(folder)]
    names = {file.relative_to(folder).parts[0] for file in below}
    names = sorted(map(tensors.shown, names))
    if names:
      break
  pickles = [name for name in names if name.endswith(weights.PICKLES)]
  if pickles and folder == path:
    return (
      f"{shown(uri)} has pickles alone ({few(pickles)}), which can run "
      "anything, expected safetensors"
    )
  have = few(names) or "nothing"
  where = os.path.normpath(os.path.join(uri.id, folder))
  return f"{shown(uri)} is not there, expected safetensors; {where} has {have}"
