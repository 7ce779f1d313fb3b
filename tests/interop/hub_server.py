"""A small stand-in for the Hugging Face Hub: what a download asks of it."""

import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse

API = re.compile(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/?]+)")
FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")  # before unquoting
GATED = {"X-Error-Code": "GatedRepo"}


class Server(http.server.ThreadingHTTPServer):
  """Serves root/OWNER/REPO, of one commit, which each of revisions names.

  requests has the paths of the files that were sent. Repositories in gated are
  for the token "right" alone, "wrong" is nobody's; with status, it answers
  nothing but that.
  """

  def __init__(self, root: pathlib.Path):
    super().__init__(("localhost", 0), Handler)
    self.root, self.gated, self.status = root, set(), None
    self.requests, self.revisions = [], {"main"}
    serve = lambda: self.serve_forever(poll_interval=0.01)
    threading.Thread(target=serve, daemon=True).start()

  @property
  def url(self) -> str:
    return f"http://localhost:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
  """One request."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *args):
    pass

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    groups = (API.match(self.path), FILE.match(self.path))
    api, file = (
      found and [urllib.parse.unquote(part) for part in found.groups()]
      for found in groups
    )
    token = self.headers.get("Authorization", "").removeprefix("Bearer ")
    if self.server.status:
      return self.answer(self.server.status)
    if token == "wrong":
      said = "Invalid credentials in Authorization header"
      return self.answer(401, headers={"X-Error-Message": said})
    if not (api or file):
      return self.answer(404)
    repo = (api or file)[0]
    folder = self.server.root / repo
    if not folder.is_dir():
      return self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
    commit = hashlib.sha1(repo.encode()).hexdigest()
    if (api[2] if api else file[1]) not in {commit, *self.server.revisions}:
      return self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
    if api:
      return self.describe(repo, folder, commit, api[1])
    if repo in self.server.gated and token != "right":
      return self.answer(403 if token else 401, headers=GATED)
    return self.send(folder / file[2], commit, f"{repo}/{file[2]}")

  def describe(self, repo, folder, commit, what):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [str(path.relative_to(folder)) for path in paths]
    if what == "revision":
      siblings = [{"rfilename": name} for name in names]
      body = {"id": repo, "sha": commit, "siblings": siblings}
    else:
      body = [
        {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0"}
        for name, path in zip(names, paths, strict=True)
      ]
    self.answer(200, json.dumps(body).encode())

  def send(self, path, commit, name):
    if not path.exists():
      return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
    if self.command == "GET":
      self.server.requests.append(name)
    data = path.read_bytes()
    tag = hashlib.sha1(data).hexdigest()
    self.answer(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": commit})

  def answer(self, status, body=b"", headers=None):
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(body)
