"""A Google Cloud Storage of this machine: as much of it as a run uses.

gcsfs, which reads and writes gs:// for etils, and TensorStore, which has
Orbax's arrays, get its address.
"""

import contextlib
import dataclasses
import datetime
import http.server
import itertools
import json
import pathlib
import re
import threading
import urllib.parse

OBJECT = "/b/([^/]+)/o/([^/]+)"


@dataclasses.dataclass
class Object:
  data: bytes
  generation: int
  updated: str


class CloudStorage:
  """Its buckets, {bucket: {name: Object}}, and the environment of its users.

  Buckets in `refused` answer that nobody may read or write them.
  """

  def __init__(self):
    self.buckets: dict[str, dict[str, Object]] = {}
    self.refused: set[str] = set()
    self.uploads: dict[str, tuple[str, str, bytearray]] = {}
    self.lock = threading.RLock()
    self._count = itertools.count(1)
    handler = type("Bound", (Handler,), {"storage": self})
    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}"
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    self.env = {
      "STORAGE_EMULATOR_HOST": self.url,
      "TENSORSTORE_GCS_HTTP_URL": self.url,
      "NO_GCE_CHECK": "true",
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a token",
      # Of gcsfs: it would ask by gRPC what kind of bucket each is.
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }

  def close(self) -> None:
    self._server.shutdown()
    self._server.server_close()

  def put(self, bucket: str, name: str, data: bytes) -> Object:
    now = datetime.datetime.now(datetime.UTC).isoformat()
    found = Object(data, next(self._count), now.replace("+00:00", "Z"))
    self.buckets[bucket][name] = found
    return found

  def names(self, bucket: str, prefix: str = "") -> list[str]:
    """Of the objects of a bucket."""
    with self.lock:
      return sorted(x for x in self.buckets[bucket] if x.startswith(prefix))

  def download(self, bucket: str, folder: pathlib.Path) -> None:
    """Every object of a bucket becomes a file."""
    with self.lock:
      for name, found in self.buckets[bucket].items():
        if not name.endswith("/"):
          path = folder / name
          path.parent.mkdir(parents=True, exist_ok=True)
          path.write_bytes(found.data)


class Refused(Exception):
  """An answer that is not what was asked for."""

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status


class Handler(http.server.BaseHTTPRequestHandler):
  """One connection: the JSON API's requests for objects of a bucket."""

  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True
  storage: CloudStorage

  def log_message(self, *_) -> None:
    """Prints nothing."""

  def answer(self) -> None:
    body = self.body()
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
    try:
      with self.storage.lock:
        status, headers, data = self.serve(url.path, query, body)
    except Refused as refused:
      told = {"code": refused.status, "message": str(refused)}
      status, headers = refused.status, {"Content-Type": "application/json"}
      data = json.dumps({"error": told}).encode()
    if status in (204, 304):
      data = b""  # clients expect none
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    with contextlib.suppress(ConnectionError):
      self.wfile.write(data)

  do_GET = do_POST = do_PUT = do_DELETE = answer

  def body(self) -> bytes:
    """In chunks, or of a length in the header."""
    if self.headers.get("Transfer-Encoding") != "chunked":
      return self.rfile.read(int(self.headers.get("Content-Length", 0)))
    body = b""
    while size := int(self.rfile.readline(), 16):
      body += self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()
    return body

  def serve(self, path: str, query: dict[str, str], body: bytes):
    """(status, headers, data)."""
    pattern = r"/storage/v1/b/([^/]+)(/o|/storageLayout)?"
    if match := re.fullmatch(pattern, path):
      objects = self.bucket(match[1])
      return told(self.listed(objects, query) if match[2] == "/o" else {})
    if match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
      return self.upload(match[1], query, body)
    pattern = rf"(?:/download)?/storage/v1{OBJECT}(?:/rewriteTo{OBJECT})?"
    if match := re.fullmatch(pattern, path):
      return self.object(*map(unquoted, match.groups()), query)
    if match := re.fullmatch(rf"/storage/v1{OBJECT}/moveTo/o/([^/]+)", path):
      return self.move(*map(unquoted, match.groups()), query)
    raise Refused(400, f"not understood: {self.command} {self.path}")

  def bucket(self, name: str) -> dict[str, Object]:
    if name in self.storage.refused:
      raise Refused(403, f"no access to bucket {name}")
    if name not in self.storage.buckets:
      raise Refused(404, f"no bucket {name}")
    return self.storage.buckets[name]

  def found(self, bucket: str, name: str, query: dict[str, str]) -> Object:
    found = self.bucket(bucket).get(name)
    check(found, query)
    if found is None:
      raise Refused(404, f"no object {name}")
    return found

  def listed(self, objects: dict[str, Object], query: dict[str, str]) -> dict:
    """A page of the names, in their order, those below a delimiter as one."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    size, last = int(query.get("maxResults", 1000)), query.get("pageToken", "")
    items, prefixes = [], []
    start, end = query.get("startOffset", ""), query.get("endOffset")
    for name in sorted(objects):
      if name < start or (end and name >= end):
        continue
      at = name.find(delimiter, len(prefix)) if delimiter else -1
      key = name if at < 0 else name[: at + len(delimiter)]
      if not name.startswith(prefix) or key <= last:
        continue
      if len(items) + len(prefixes) == size:
        return {"items": items, "prefixes": prefixes, "nextPageToken": last}
      if at < 0:
        items.append(described(name, objects[name]))
      else:
        prefixes.append(key)
      last = key
    return {"items": items, "prefixes": prefixes}

  def object(
    self,
    bucket: str,
    name: str,
    to_bucket: str | None,
    to_name: str | None,
    query: dict[str, str],
  ):
    """Deletes it, copies it, sends what it holds, or describes it."""
    found = self.found(bucket, name, query)
    if self.command == "DELETE":
      del self.bucket(bucket)[name]
      return 204, {}, b""
    if to_bucket:
      self.bucket(to_bucket)
      copy = self.storage.put(to_bucket, to_name, found.data)
      return told({"done": True, "resource": described(to_name, copy)})
    if query.get("alt") == "media":
      return self.media(found)
    return told(described(name, found))

  def move(self, bucket: str, name: str, to: str, query: dict[str, str]):
    found = self.found(bucket, name, query)
    moved = self.storage.put(bucket, to, found.data)
    del self.bucket(bucket)[name]
    return told(described(to, moved))

  def media(self, found: Object):
    headers = {
      "Content-Type": "application/octet-stream",
      "x-goog-generation": str(found.generation),
    }
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
    if not asked:
      return 200, headers, found.data
    size = len(found.data)
    first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
    last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
    if first >= size:
      raise Refused(416, f"the object has {size} bytes")
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return 206, headers, found.data[first : last + 1]

  def upload(self, bucket: str, query: dict[str, str], body: bytes):
    """All at once, or (as gcsfs) to an address that is made for it."""
    objects, uploads = self.bucket(bucket), self.storage.uploads
    if query["uploadType"] == "media":
      check(objects.get(query["name"]), query)
      made = self.storage.put(bucket, query["name"], body)
      return told(described(query["name"], made))
    if "upload_id" not in query:
      key = str(len(uploads))
      uploads[key] = (bucket, query["name"], bytearray())
      location = f"{self.storage.url}{self.path}&upload_id={key}"
      return 200, {"Location": location}, b""
    _, name, parts = uploads[query["upload_id"]]
    parts += body
    total = self.headers.get("Content-Range", "").rpartition("/")[2]
    if total not in ("", str(len(parts))):
      have = {"Range": f"bytes=0-{len(parts) - 1}"} if parts else {}
      return 308, have, b""
    made = self.storage.put(bucket, name, bytes(parts))
    return told(described(name, made))


def unquoted(part: str | None) -> str | None:
  return part and urllib.parse.unquote(part)


def told(answer: dict):
  data = json.dumps(answer).encode()
  return 200, {"Content-Type": "application/json"}, data


def described(name: str, found: Object) -> dict[str, str]:
  return {
    "name": name,
    "size": str(len(found.data)),
    "generation": str(found.generation),
    "metageneration": "1",
    "updated": found.updated,
    "timeCreated": found.updated,
  }


def check(found: Object | None, query: dict[str, str]) -> None:
  """Refuses what is asked for of another generation than there is."""
  generation = str(found.generation) if found else "0"
  if query.get("ifGenerationMatch", generation) != generation:
    raise Refused(412, "another generation")
  if query.get("ifGenerationNotMatch") == generation:
    raise Refused(304, "the same generation")
