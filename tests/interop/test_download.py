"""hf:// paths: what is fetched, from where else, and what goes wrong.

From a server on this machine that answers as the Hub does.
"""

import hashlib
import json
import pathlib
import re
import runpy
import shlex
import sys
import types

import huggingface_hub
import numpy as np
import pytest
from absl import logging
from huggingface_hub import constants
from ml_collections import ConfigDict

from imagen_jax import build, export, metrics
from imagen_jax.cli import command_line
from imagen_jax.interop import download, published, t5

SERVER = runpy.run_path(str(pathlib.Path(__file__).with_name("hub_server.py")))
IF = "DeepFloyd/IF-I-XL-v1.0"
UNET = ("config.json", "diffusion_pytorch_model.safetensors")
LEFT = (
  "diffusion_pytorch_model.bin",
  "diffusion_pytorch_model.fp16.safetensors",
  "model.fp16-00001-of-00002.safetensors",
  "deeper/model.safetensors",
)


def write(folder, names):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)


@pytest.fixture
def server(tmp_path, monkeypatch):
  """One repository as DeepFloyd's are, and one of a file; an empty cache."""
  server = SERVER["Server"](tmp_path / "repos")
  write(server.root / IF / "unet", UNET + LEFT)
  write(server.root / IF / "old", ["pytorch_model.bin", "config.json"])
  write(server.root / IF / "tokenizer", ["spiece.model", "tokenizer.json"])
  write(server.root / "someone/small", ["net.safetensors"])
  point_at(server.url, tmp_path, monkeypatch)
  yield server
  server.shutdown()
  server.server_close()


def point_at(url, tmp_path, monkeypatch):
  """As HF_ENDPOINT and HF_HOME would."""
  files = url + "/{repo_id}/resolve/{revision}/{filename}"
  monkeypatch.setattr(constants, "ENDPOINT", url)
  monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
  monkeypatch.delenv("HF_TOKEN", raising=False)
  download.fetch.cache_clear()
  download._tell.cache_clear()


def refused(url):
  """The one sentence of its error."""
  with pytest.raises(ValueError) as caught:
    published.resolve(url)
  assert "\n" not in str(caught.value)
  return str(caught.value)


# --- What is fetched.


def test_a_folder_is_its_safetensors_and_json_without_variants(server):
  path = published.resolve(f"hf://{IF}/unet")
  names = sorted(item.name for item in path.iterdir())
  assert names == sorted(UNET)
  assert sorted(server.requests) == [f"{IF}/unet/{name}" for name in UNET]
  assert (path / UNET[1]).read_text() == UNET[1]
  assert published.resolve(f"hf://{IF}@main/unet/") == path
  assert len(server.requests) == len(UNET)


@pytest.mark.parametrize("name", ["unet/" + LEFT[1], "tokenizer/spiece.model"])
def test_a_file_is_itself_alone(server, name):
  path = published.resolve(f"hf://{IF}/{name}")
  assert path.read_text() == name.rpartition("/")[2]
  assert server.requests == [f"{IF}/{name}"]


@pytest.mark.parametrize("at", ["refs/pr/1", "feature%2Fone", "v1"])
def test_a_revision_may_have_slashes(server, at):
  server.revisions = {at.replace("%2F", "/")}
  path = published.resolve(f"hf://{IF}@{at}/unet")
  assert (path / UNET[0]).read_text() == UNET[0]
  moved = download.moved(f"hf://{IF}@{at}/unet", "else")
  assert moved == f"hf://else/IF-I-XL-v1.0@{at}/unet"
  server.revisions = set()
  said = f"no revision {at.replace('%2F', '/')}"
  said = f"hf://{IF}@{at}/tokenizer cannot be fetched: {IF} has {said}"
  assert refused(f"hf://{IF}@{at}/tokenizer") == said


@pytest.mark.parametrize("path", ["t5", "t5/model.safetensors.index.json"])
def test_with_an_index_come_the_shards(server, text, state, path, write_shards):
  folder = write_shards(server.root / "someone/small" / "t5", state)
  write(folder, ["pytorch_model.bin"])
  params = build.load_text(text(f"hf://someone/small/{path}"))
  table = params["token_embedder"]["embedding"]
  np.testing.assert_array_equal(table, state["shared.weight"])
  assert len(server.requests) == 4


@pytest.mark.parametrize("at", ["", "@refs/pr/1", "@v1", "@refs/pr/1/"])
def test_a_whole_repository(server, text, state, at, write_shards):
  """As google/t5-v1_1-base has its safetensors at the root of a revision."""
  server.revisions |= {"refs/pr/1", "v1"}
  root = write_shards(server.root / "google/t5", state)
  write(root, ["config.json", "pytorch_model.bin", "a.py", "onnx/a.json"])
  (root / "config.json").write_text("{}")
  params = build.load_text(text(f"hf://google/t5{at}"))
  table = params["token_embedder"]["embedding"]
  np.testing.assert_array_equal(table, state["shared.weight"])
  assert len(server.requests) == 5  # three shards, index and config
  moved = download.moved(f"hf://google/t5{at}", "else")
  assert moved == f"hf://else/t5{at.rstrip('/')}"


def test_a_full_clip(server):
  """As --clip of evaluate; pickles beside it are not fetched."""
  helper = pathlib.Path(__file__).parents[1] / "evals" / "clip_folder.py"
  (server.root / "openai").mkdir()
  folder = runpy.run_path(str(helper))["write_clip"](
    server.root / "openai/clip"
  )
  write(folder, ["pytorch_model.bin", "tf_model.h5"])
  args = types.SimpleNamespace(clip="hf://openai/clip")
  found = metrics.load_clip(args, ("clip",))
  weights = (folder / "model.safetensors").read_bytes()
  assert found.digest == hashlib.sha256(weights).hexdigest()
  assert found.model == "ViT-32/5@23px" and found.tokenizer.length == 9
  assert not any(name.endswith(("bin", "h5")) for name in server.requests)


@pytest.mark.parametrize(
  "path", ["t5@refs/pr/1", "t5@refs/pr/1/model.safetensors", "t5@v1/in/"]
)
def test_sizes_come_from_the_hub_alone(server, params, path):
  """Of the weights nothing is fetched before they are read."""
  server.revisions |= {"refs/pr/1", "v1"}
  for folder in ("google/t5", "google/t5/in"):
    t5.save_hugging_face(server.root / folder, params)
  config = {"vocabulary": "", "weights": f"hf://google/{path}"}
  assert build.text(ConfigDict(config)).encoder.emb_dim == 40
  assert server.requests == [f"google/t5/{'in/' * ('in' in path)}config.json"]


@pytest.mark.parametrize("name", ["*", "*.safetensors", "../b.safetensors"])
def test_an_index_cannot_ask_for_more(server, name):
  """Of {"a": "*"} came pickles, .py files and all else."""
  repo = server.root / "someone/all"
  write(repo, ["a.bin", "a.pkl", "a.py", "a.safetensors"])
  index = repo / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": name}}))
  said = refused(f"hf://someone/all/{index.name}")
  assert f" names the file {name!r}, expected the names of safe" in said
  assert server.requests == [f"someone/all/{index.name}"]


def test_what_was_fetched_needs_no_connection(server, tmp_path, monkeypatch):
  path = published.resolve(f"hf://{IF}/unet")
  point_at("http://localhost:9", tmp_path, monkeypatch)
  assert published.resolve(f"hf://{IF}/unet") == path


def test_the_licence_is_told_of_once(server, monkeypatch):
  told = []
  monkeypatch.setattr(logging, "warning", told.append)
  published.resolve("hf://someone/small/net.safetensors")
  assert not told
  for part in ("unet", "tokenizer"):
    published.resolve(f"hf://{IF}/{part}")
  (line,) = told
  assert "research only" in line and "accepted" in line and "deriv" in line
  download._tell.cache_clear()
  write(server.root / "someone/IF-II-L-v1.0/unet", UNET)
  published.resolve("hf://someone/IF-II-L-v1.0/unet")
  assert len(told) == 2


def test_the_commands_of_the_page_of_weights_can_be_parsed():
  page = pathlib.Path(__file__).parents[2] / "docs" / "weights.md"
  text = page.read_text("utf-8")
  found = re.findall(r"hf://[a-z][^\s`]*", text)
  assert len(found) == 2
  for path in found:
    assert download.shown(download.parse(path)) == path
  command = re.findall(r"imagen_jax.export ((?:.*\\\n)+.*)", text)[-1]
  args = shlex.split(command.replace("\\\n", ""))
  config = command_line.parse(export.define_flags, args).config
  assert build.text(config.text).weights == found[0]
  assert config.text.vocabulary == found[1]


# --- What goes wrong.


def test_paths_of_no_repository(server):
  form = "hf://OWNER/REPO/PATH or hf://OWNER/REPO@REVISION/PATH"
  for path in (
    "a", "a/b/../c", "a/b/./c", "a/b//c", "a/b@/c", "/b/c", "../b/c", "a//b",
    "datasets/a/b/c", "datasets/a/b", "a/b@..%2F..%2Fc/d", "a/b@../c", "a/b/*",
    "a/b/unet/*", "a/b/?.json", "a/b/[a-z]", "a/b@v*/c", "a/b/c\\d",
  ):  # fmt: skip
    said = f"hf://{path} names no part of a repository, expected {form}"
    assert refused(f"hf://{path}") == said
  assert not server.requests


def test_pickles_are_not_fetched(server):
  path = f"hf://{IF}/old/pytorch_model.bin"
  said = "which can run anything, expected safetensors"
  assert refused(path) == f"weights {path} are a pickle, {said}"
  path = f"hf://{IF}/old"
  assert (
    refused(path) == f"{path} has pickles alone (pytorch_model.bin), {said}"
  )
  assert server.requests == [f"{IF}/old/config.json"]


def test_pickles_of_an_index_are_not_fetched(server):
  repo, name = "someone/bins", "pytorch_model.bin.index.json"
  write(server.root / repo, ["pytorch_model.bin"])
  index = '{"weight_map": {"a": "pytorch_model.bin"}}'
  (server.root / repo / name).write_text(index)
  said = "/pytorch_model.bin are a pickle, which can run anything, expected saf"
  assert said in refused(f"hf://{repo}/{name}")
  assert server.requests == [f"{repo}/{name}"]


@pytest.mark.parametrize(
  ("path", "have"),
  [
    (f"{IF}/unett", f"{IF} has old, tokenizer, unet"),
    (f"{IF}/old/x.safetensors", f"{IF}/old has config.json, pytorch_model.bin"),
    ("someone/small/unet/x", "someone/small has net.safetensors"),
  ],
)
def test_nothing_is_at_the_path(server, path, have):
  said = f"hf://{path} is not there, expected safetensors; {have}"
  assert refused(f"hf://{path}") == said


def test_a_gated_repository(server, monkeypatch):
  server.gated.add(IF)
  path = f"hf://{IF}/unet"
  said = (
    f"{path} cannot be fetched: it is gated, expected its licence to be "
    "accepted on its page on the Hub and a token of who did (HF_TOKEN, or `hf "
    "auth login`)"
  )
  assert refused(path) == said
  monkeypatch.setenv("HF_TOKEN", "of another")
  assert refused(path) == said
  monkeypatch.setenv("HF_TOKEN", "wrong")
  assert refused(path) == (
    f"{path} cannot be fetched: the Hub does not accept your token for {IF}"
  )
  assert not server.requests
  monkeypatch.setenv("HF_TOKEN", "right")
  assert (published.resolve(path) / "config.json").exists()


@pytest.mark.parametrize(
  ("path", "reason"),
  [
    ("a/b/c", "the Hub has no a/b that your token, if any, may read"),
    ("someone/small@v9/unet", "someone/small has no revision v9"),
  ],
)
def test_no_such_repository_or_revision(server, path, reason):
  assert refused(f"hf://{path}") == f"hf://{path} cannot be fetched: {reason}"


def test_the_hub_is_down_or_not_reached(server, tmp_path, monkeypatch):
  path = f"hf://{IF}/unet"
  for status in (403, 404, 500, 503):
    server.status = status
    said = refused(path).removeprefix(f"{path} cannot be fetched: ")
    expected = "does not accept your token" if status == 403 else "answered"
    assert said.startswith(f"the Hub {expected}"), status
  point_at("http://localhost:9", tmp_path, monkeypatch)
  assert refused(path) == (
    f"{path} cannot be fetched: the Hub cannot be reached, and the cache has "
    "no copy"
  )


# --- From where else.


def test_a_socks_proxy_is_named(server, monkeypatch):
  """The Hub's client makes new connections, for other variables."""
  huggingface_hub.close_session()
  monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
  monkeypatch.setitem(sys.modules, "socksio", None)
  said = refused(f"hf://{IF}/unet")
  huggingface_hub.close_session()
  assert "cannot be fetched through a SOCKS proxy (ALL_PROXY or" in said
  assert "pip install socksio" in said


def test_a_cache_needs_a_home_folder(server, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", "~nobody-here/.cache/hub")
  said = refused(f"hf://{IF}/unet")
  assert "begins with a home folder that is not known, expected HOME" in said
  assert not list(tmp_path.glob("~*"))


def test_moved(tmp_path):
  (tmp_path / "IF-I-XL-v1.0").mkdir()
  path = f"hf://{IF}@v1/unet/model.safetensors"
  local = f"{tmp_path}/IF-I-XL-v1.0/unet/model.safetensors"
  assert download.moved(path, str(tmp_path)) == local
  other = "hf://ckpt/IF-I-XL-v1.0@v1/unet/model.safetensors"
  assert download.moved(path, "ckpt") == other
  with pytest.raises(ValueError) as caught:
    download.moved("hf://google/t5-v1_1-xxl/x", str(tmp_path))
  assert str(caught.value) == (
    f"folder {tmp_path} has no t5-v1_1-xxl, expected a copy of "
    "google/t5-v1_1-xxl"
  )
  with pytest.raises(ValueError) as caught:
    download.moved(path, "no/folder")
  assert str(caught.value) == (
    "no/folder is not there, expected a folder with IF-I-XL-v1.0 or an owner "
    "on the Hub"
  )
