"""Files whole or not at all, and the reasons why something failed."""

import ast
import errno
import json
import os
import pathlib
import re
import stat
import subprocess
import sys
import threading

import pytest

from imagen_jax import files

PACKAGE = pathlib.Path(files.__file__).parent
# Adds lines to a file that stays open; sees whether a folder takes a file.
OTHERS = {"training/metric_files.py", "checkpoints/manager.py"}


def test_bytes_and_text_replace_what_was_there(tmp_path):
  path = tmp_path / "a"
  for data, wanted in (
    (b"\0\xff", b"\0\xff"),
    ("ä\n", b"\xc3\xa4\n"),
    ("", b""),
  ):
    files.write(path, data)
    assert path.read_bytes() == wanted
  assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_it_as_the_umask_says(tmp_path):
  before = os.umask(0o027)
  try:
    files.write(tmp_path / "a", "b")
  finally:
    os.umask(before)
  assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_folders_are_made_where_asked(tmp_path):
  path = tmp_path / "new" / "folder" / "a"
  with pytest.raises(ValueError, match="cannot be written: No such file"):
    files.write(path, "b")
  assert not list(tmp_path.iterdir())
  files.write(path, "b", parents=True)
  assert path.read_text() == "b"


@pytest.mark.parametrize(
  ("where", "said"),
  [
    ("file/a", "Not a directory"),
    ("folder", "Is a directory"),
    ("no/a", "No such file or directory"),
    ("a\0b", "ValueError: .*embedded null .*"),
  ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, where, said):
  (tmp_path / "file").touch()
  (tmp_path / "folder" / "full").mkdir(parents=True)
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(ValueError) as caught:
    files.write(f"{tmp_path}/{where}", "b")
  where = re.escape(f"{tmp_path}/{where}")
  assert re.fullmatch(f"{where} cannot be written: {said}", str(caught.value))
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
  "error", [OSError(28, "No space"), KeyboardInterrupt()]
)
def test_the_old_file_outlives_a_failure(tmp_path, monkeypatch, error):
  path = tmp_path / "a"
  path.write_text("old")

  def replace(part, target):
    assert pathlib.Path(part).read_text() == "new"
    raise error

  monkeypatch.setattr(files.os, "replace", replace)
  wanted = ValueError if isinstance(error, OSError) else KeyboardInterrupt
  with pytest.raises(wanted):
    files.write(path, "new")
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]


def test_links_are_not_followed(tmp_path, monkeypatch):
  """Neither one at the path nor one at the name that is written first."""
  victim, path = tmp_path / "victim", tmp_path / "a"
  victim.write_text("mine")
  path.symlink_to(victim)
  files.write(path, "new")
  assert path.read_text() == "new" and not path.is_symlink()

  monkeypatch.setattr(files.secrets, "token_hex", lambda _: "known")
  (tmp_path / ".known.part").symlink_to(victim)
  with pytest.raises(ValueError, match="a cannot be written: File exists"):
    files.write(path, "newer")
  assert victim.read_text() == "mine" and path.read_text() == "new"


def test_streams_are_written_as_they_are(tmp_path):
  pipe, found = tmp_path / "pipe", []
  os.mkfifo(pipe)
  reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
  reader.start()
  files.write(pipe, "through")
  reader.join()
  assert found == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)

  with (tmp_path / "out").open("w+") as out:  # as of a shell's "> out"
    files.write(f"/dev/fd/{out.fileno()}", "lines")
    assert out.read() == "lines"


def writes(path: pathlib.Path) -> list[str]:
  """Calls that write a file, such as open(x, "w") and x.write_text(y)."""
  found = []
  for node in ast.walk(ast.parse(path.read_text("utf-8"))):
    if not isinstance(node, ast.Call):
      continue
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    modes = [*node.args, *(each.value for each in node.keywords)]
    modes = [str(x.value) for x in modes if isinstance(x, ast.Constant)]
    is_open = name == "open" and any(
      re.fullmatch("[rwaxbt+]*[wax+][rwaxbt+]*", mode) for mode in modes
    )
    if is_open or name in ("write_text", "write_bytes", "save_file"):
      found.append(f"{path.name}:{node.lineno} {name}")
  return found


def test_all_files_are_written_by_this_one():
  found = {
    str(path.relative_to(PACKAGE)): calls
    for path in PACKAGE.rglob("*.py")
    if (calls := writes(path))
  }
  assert found.keys() == {"files.py", *OTHERS}


def test_planted_writes_are_found(tmp_path):
  path = tmp_path / "a.py"
  path.write_text(
    "open(x)\nopen(x, 'rb')\nx.open('wb')\nopen(x, mode='a')\n"
    "x.write_text(y)\nx.read_text('utf-8')\nopen('w')"
  )
  assert [found.split()[0] for found in writes(path)] == [
    "a.py:3", "a.py:4", "a.py:5", "a.py:7",
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("error", "expected"),
  [
    (
      OSError(errno.ENOSPC, "No space left on device"),
      "No space left on device",
    ),
    (OSError("as some libraries do"), "OSError: as some libraries do"),
    (ValueError("one\ntwo"), "ValueError: one"),
    (
      OSError("Forbidden: https://g/b/o\nno access to o"),  # gcsfs's
      "OSError: Forbidden: no access to o",
    ),
    (
      ValueError(  # TensorStore's
        "PERMISSION_DENIED: Error reading gs://b/o: no access "
        "[tensorstore_spec='{}'] [http_response_code='403']"
      ),
      "ValueError: PERMISSION_DENIED: Error reading gs://b/o: no access",
    ),
    (
      ValueError("DATA_LOSS: [source='a'] [os_error_code='28']"),
      "No space left on device",
    ),
    (
      ValueError("what " + "of this " * 50 + "and why"),
      f"ValueError: {('what ' + 'of this ' * 50)[:120]} ... "
      f"{('of this ' * 50 + 'and why')[-120:]}",
    ),
  ],
)
def test_a_reason_is_short_and_has_the_cause(error, expected):
  assert files.reason(error) == expected


REMOTE = """
from imagen_jax import files
files.write("gs://bucket/new/a", "old", parents=True)
files.write("gs://bucket/new/a", b"new")
try:
  files.write("gs://closed/a", "b")
except ValueError as error:
  print(error)
"""


def test_an_object_store(storage):
  storage.refused.add("closed")
  done = subprocess.run(
    [sys.executable, "-c", REMOTE],
    cwd=PACKAGE.parent,
    env=os.environ | storage.env | {"EPATH_USE_TF": "0"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("gs://closed/a cannot be written: ")
  assert done.stdout.count("\n") == 1 and "Forbidden" in done.stdout
  (name,) = storage.names("bucket", "new/a")
  assert storage.buckets["bucket"][name].data == b"new"
  assert not storage.names("bucket", "new/.")


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("a red star", "'a red star'"),
    ("été 紅い星", "'été 紅い星'"),
    ("it's", '"it\'s"'),
    ("\x1b[31m\r\nerror: \u2028\u202e\x85\0\ud83d",
     r"'\x1b[31m\r\nerror: \u2028\u202e\x85\x00\ud83d'"),
    (b"\xff", "\"b'\\\\xff'\""),
    (["a", 1], "\"['a', 1]\""),
    ("", "''"),
    ("x" * 78, "'" + "x" * 78 + "'"),
    ("x" * 79, "'" + "x" * 75 + "'..."),
    ("x" * 5_000_000, "'" + "x" * 75 + "'..."),
    ("\x1b" * 99, "'" + r"\x1b" * 18 + "'..."),
  ],
)  # fmt: skip
def test_a_quoted_text_is_printable_and_short(text, shown):
  assert files.quote(text) == shown
  assert len(shown) <= 80 and shown.isprintable()
  assert len(files.quote(text, 16)) <= 16


SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r"


@pytest.mark.parametrize("separator", SEPARATORS)
def test_only_a_line_feed_ends_a_line(tmp_path, separator):
  """As an editor counts lines, and as other programs read them."""
  path = tmp_path / "a"
  path.write_bytes(f"a{separator}b\n{separator}\n \tc\r\n".encode())
  assert files.read_lines(path, "a") == [f"a{separator}b", "", "c"]


@pytest.mark.parametrize(
  ("data", "lines"),
  [
    (b"", []),
    (b"\n", [""]),
    (b"\n\n", ["", ""]),
    (b"\xef\xbb\xbfa", ["a"]),  # Windows' mark
    (b"a\n b ", ["a", "b"]),
    (b"a\n  ", ["a"]),
  ],
)
def test_the_lines_of_a_file(tmp_path, data, lines):
  path = tmp_path / "a"
  path.write_bytes(data)
  assert files.read_lines(path, "a") == lines


def test_lines_that_cannot_be_read(tmp_path):
  path = tmp_path / "a"
  for data in (b"\xff", b"a\0"):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^captions {path} is not UTF-8 text"):
      files.read_lines(path, "captions")
  with pytest.raises(ValueError, match="^captions .* cannot be read: Is a dir"):
    files.read_lines(tmp_path, "captions")


def test_nothing_else_splits_lines():
  """str.splitlines also cuts at U+2028 and five others, inside a caption."""
  calls = {
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob("*.py")
    if ".splitlines(" in path.read_text("utf-8")
  }
  assert calls == {"training/metric_files.py"}  # of bytes, at \n and \r


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (b"", "is not JSON: Expecting value"),
    (b"\xff", "is not JSON: 'utf-8' codec can't decode"),
    (b"[" * 100_000, "is nested too deeply, expected at most 100 levels"),
    (b'{"a":' * 100_000, "is nested too deeply"),
    (b"[" * 101 + b"]" * 101, "is nested too deeply"),
    (b"9" * 5000, "is not JSON: Exceeds the limit"),
    (b" " * 2**24 + b"1", "is no such file: it has over 16 MiB"),
  ],
)
def test_json_of_anyone(tmp_path, data, said):
  path = tmp_path / "a.json"
  path.write_bytes(data)
  with pytest.raises(ValueError) as caught:
    files.read_json(path, "index")
  assert str(caught.value).startswith(f"index {path} {said}")


def test_json_that_is_sound(tmp_path):
  path = tmp_path / "a.json"
  for value in ({"a": [1, {"b": None}]}, [], "ä", 1.5, [[[[]]]]):
    path.write_text(json.dumps(value))
    assert files.read_json(path, "index") == value
  with pytest.raises(ValueError, match="index .*/b cannot be read: No such f"):
    files.read_json(tmp_path / "b", "index")
