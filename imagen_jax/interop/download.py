"""Files of the Hugging Face Hub by paths such as hf://OWNER/REPO/unet.

They come with the user's own token (HF_TOKEN, or what `hf auth login` keeps)
and stay in the Hub's cache. Of a folder only safetensors, JSON and vocabularies
are asked for, and no variants of theirs such as model.fp16.safetensors.
"""

import dataclasses
import functools
import os
import pathlib
import re

import huggingface_hub
from absl import logging
from etils import epath
from huggingface_hub import errors

from imagen_jax.interop import hub, weights
from imagen_jax.interop.tensors import few

SCHEME = "hf://"
FORM = "hf://OWNER/REPO/PATH or hf://OWNER/REPO@REVISION/PATH"
_NAME = r"\w[\w.-]*"
_FORM = re.compile(rf"hf://({_NAME})/({_NAME})(?:@([^/]+))?/(.+)")
_ENDINGS = ("safetensors", "json", "model")
# By owner and name of a repository, copies of others included.
_IF = re.compile(r"DeepFloyd/.*|.*/IF-I+-.*")
_IF_NOTICE = (
  "The weights of DeepFloyd IF have a licence of their own: for research only, "
  "not commercial, and to be accepted on the model's page on the Hub; weights "
  "converted from them are derivatives under that licence."
)


@dataclasses.dataclass(frozen=True)
class Place:
  """What an hf:// path names; str() gives the path."""

  owner: str
  name: str
  revision: str | None
  path: str

  @property
  def repo(self) -> str:
    return f"{self.owner}/{self.name}"

  def __str__(self) -> str:
    at = f"@{self.revision}" if self.revision else ""
    return f"{SCHEME}{self.repo}{at}/{self.path}"


def parse(url: str) -> Place:
  """ValueError for what is no path within a repository."""
  match = _FORM.fullmatch(url.rstrip("/"))
  path = match[4].split("/") if match else [""]
  if {"", ".", ".."} & set(path):
    raise ValueError(f"{url} names no part of a repository, expected {FORM}")
  return Place(*match.groups())


def moved(url: str, to: str) -> str:
  """An hf:// path where it lies in a folder of repositories, or by an owner.

  ValueError if `to` is neither, or the folder lacks the repository.
  """
  place, folder = parse(url), pathlib.Path(to).expanduser()
  if folder.is_dir():
    if not (folder / place.name).is_dir():
      raise ValueError(
        f"folder {to} has no {place.name}, expected a copy of {place.repo}"
      )
    return str(folder / place.name / place.path)
  if not re.fullmatch(_NAME, to):
    raise ValueError(
      f"{to} is not there, expected a folder with {place.name} or an owner on "
      "the Hub"
    )
  return str(dataclasses.replace(place, owner=to))


@functools.cache
def fetch(url: str) -> epath.Path:
  """The local copy of the file or folder that an hf:// path names.

  With an index of shards come the shards. ValueError if it cannot be had, and
  for pickles, which are not asked for.
  """
  place = parse(url)
  weights.check_no_pickle(url)
  if _IF.fullmatch(place.repo):
    _tell(_IF_NOTICE)
  within = [f"{place.path}/*.{ending}" for ending in _ENDINGS]
  found = _snapshot(place, [place.path, *within])
  if found.is_dir():
    names = [item.name for item in found.iterdir() if not item.is_dir()]
    if not any(name.endswith(("safetensors", "model")) for name in names):
      raise ValueError(_unusable(place))
  elif not found.exists():
    raise ValueError(_unusable(place))
  elif found.suffix == ".json":
    beside = os.path.dirname(place.path)
    shards = sorted(set(hub.weight_map(found).values()))
    _snapshot(place, [os.path.join(beside, shard) for shard in shards])
  return found


@functools.cache
def _tell(notice: str) -> None:
  """A warning that is given once."""
  logging.warning(notice)


def _snapshot(place: Place, patterns: list[str]) -> epath.Path:
  """Fetches the files that match; returns where the place's path is then."""
  huggingface_hub.logging.set_verbosity_error()  # what is amiss we say
  try:
    root = huggingface_hub.snapshot_download(
      place.repo,
      revision=place.revision,
      allow_patterns=patterns,
      # What lies deeper, and files of two dots: variants.
      ignore_patterns=[
        f"{place.path}/*/*", f"{place.path}/*.*.safetensors",
      ],
    )  # fmt: skip
  except (errors.EntryNotFoundError, errors.HTTPError, OSError) as error:
    reason = _reason(place, error)
    raise ValueError(f"{place} cannot be fetched: {reason}") from error
  return epath.Path(root) / place.path


def _reason(place: Place, error: Exception) -> str:
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
    return f"the Hub has no {place.repo} that your token, if any, may read"
  if isinstance(error, errors.RevisionNotFoundError):
    return f"{place.repo} has no revision {place.revision}"
  if not isinstance(error, errors.HfHubHTTPError):
    return str(error).split("\n")[0]
  status = error.response.status_code
  if status in (401, 403):
    return f"the Hub does not accept your token for {place.repo}"
  return f"the Hub answered {status}"


def _unusable(place: Place) -> str:
  """Says what a repository has at a path, other than weights to read."""
  api = huggingface_hub.HfApi()
  try:
    files = api.list_repo_files(place.repo, revision=place.revision)
  except (errors.HTTPError, OSError):
    return f"{place} is not there"
  path = pathlib.PurePosixPath(place.path)
  for folder in (path, *path.parents):
    below = [pathlib.PurePosixPath(file) for file in files]
    below = [file for file in below if file.is_relative_to(folder)]
    names = sorted({file.relative_to(folder).parts[0] for file in below})
    if names:
      break
  pickles = [name for name in names if name.endswith(weights.PICKLES)]
  if pickles and folder == path:
    return (
      f"{place} has pickles alone ({few(pickles)}), which can run anything, "
      "expected safetensors"
    )
  have = few(names) or "nothing"
  where = os.path.normpath(os.path.join(place.repo, folder))
  return f"{place} is not there, expected safetensors; {where} has {have}"
