"""Downloads from the Hugging Face Hub by paths such as hf://OWNER/REPO/unet.

A path without a folder is the repository itself, as hf://OWNER/REPO@REVISION.

Files are fetched with the user's own token (HF_TOKEN, or the one that
`hf auth login` stores) and stay in the Hub's cache. From a folder only
safetensors, JSON and vocabularies are fetched, without variants such as
model.fp16.safetensors.
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
_PATTERNS = set("*?[]\\")  # the Hub's client would match these as patterns
_ENDINGS = ("safetensors", "json", "model")
# The ids of DeepFloyd IF's repositories, with copies by other owners.
_IF = re.compile(r"DeepFloyd/.*|.*/IF-I+-.*")
_IF_NOTICE = (
  "The weights of DeepFloyd IF have a licence of their own: for research only, "
  "not commercial, and to be accepted on the model's page on the Hub; weights "
  "converted from them are derivatives under that licence."
)


def parse(url: str) -> HfUri:
  """Parses an hf:// path; a revision may have slashes, as in @refs/pr/1.

  Raises:
    ValueError: the path names no repository of models, leads out of the
      repository, or is a pattern.
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
  """Formats a parsed path as the hf:// path that a config has."""
  return uri.to_uri().replace(f"{SCHEME}models/", SCHEME, 1)


def beside(url: str, name: str) -> str:
  """Returns the hf:// path of a file in the folder of some weights.

  Args:
    url: the hf:// path of the folder, or of a weights file in it.
    name: the file's name.

  Raises:
    ValueError: as parse.
  """
  uri = parse(url)
  path = pathlib.PurePosixPath(uri.path_in_repo)
  folder = path.parent if path.suffix in (".safetensors", ".json") else path
  return shown(dataclasses.replace(uri, path_in_repo=str(folder / name)))


def moved(url: str, to: str) -> str:
  """Redirects an hf:// path to a local copy, or to a copy by another owner.

  Args:
    url: the hf:// path.
    to: a local folder of repositories, or an owner on the Hub.

  Raises:
    ValueError: `to` is neither, or the folder lacks the repository.
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
  """Fetches the file or folder that an hf:// path names into the Hub's cache.

  An index of shards is fetched with its shards.

  Returns:
    The local copy.

  Raises:
    ValueError: it cannot be fetched, or has only pickles, which are never
      fetched.
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
  """Logs a warning, once per notice."""
  logging.warning(notice)


def _below(uri: HfUri) -> str:
  """Returns the prefix of the paths of a folder's files."""
  return f"{uri.path_in_repo}/" if uri.path_in_repo else ""


def _snapshot(uri: HfUri, patterns: list[str]) -> epath.Path:
  """Fetches the files that match; returns the local copy of the path.

  One thread fetches at a time.
  """
  below = _below(uri)
  expand(huggingface_hub.constants.HF_HUB_CACHE)  # checks for a home folder
  try:
    with _quiet_hub():
      root = huggingface_hub.snapshot_download(
        uri.id,
        revision=uri.revision,
        allow_patterns=patterns,
        # Subfolders, and names with two dots, which are variants.
        ignore_patterns=[f"{below}*/*", f"{below}*.*.safetensors"],
      )
  except (errors.EntryNotFoundError, errors.HTTPError, OSError) as error:
    reason = _reason(uri, error)
    raise ValueError(f"{shown(uri)} cannot be fetched: {reason}") from error
  except ImportError as error:  # the client lacks the package for a proxy
    raise ValueError(
      f"{shown(uri)} cannot be fetched through a SOCKS proxy (ALL_PROXY or "
      "HTTPS_PROXY) without the package socksio, expected pip install socksio "
      "or an HTTP proxy"
    ) from error
  return epath.Path(root) / uri.path_in_repo


_quiet = threading.Lock()  # the verbosity belongs to the process


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
  """Silences the Hub's client, whose errors are raised as one sentence."""
  with _quiet:
    before = huggingface_hub.logging.get_verbosity()
    huggingface_hub.logging.set_verbosity_error()
    try:
      yield
    finally:
      huggingface_hub.logging.set_verbosity(before)


def _reason(uri: HfUri, error: Exception) -> str:
  """Returns why a fetch failed, and how to fix it."""
  if isinstance(error, errors.LocalEntryNotFoundError):
    cause = error.__cause__  # the Hub's error, before the cache was tried
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
  """Returns the message for a path without weights: what it has instead."""
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
