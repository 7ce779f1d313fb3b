"""Files whole or not at all, and the reasons why something failed."""

import ast
import errno
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


@pytest.mark.parametrize(
  ("path", "found"),
  [
    ("~/a", "/home/me/a"),
    ("~", "/home/me"),
    ("~root", "/root"),
    ("a/~", "a/~"),
    ("./~a", "./~a"),
    ("gs://bucket/~/a", "gs://bucket/~/a"),
    (pathlib.Path("~/a"), "/home/me/a"),
  ],
)
def test_a_home_folder_is_expanded(monkeypatch, path, found):
  monkeypatch.setenv("HOME", "/home/me")
  assert files.expand(path) == found


@pytest.mark.parametrize("path", ["~/a", "~", "~no-such-user/a"])
@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home_no_folder_is_named_for_it(
  monkeypatch, tmp_path, path, home
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("HOME")
  if home is not None:
    monkeypatch.setenv("HOME", home)
  monkeypatch.setattr(os, "getuid", lambda: 987654)  # of no user
  with pytest.raises(ValueError, match=f"^path {path} begins with a home fold"):
    files.write(path, "data", parents=True)
  assert list(tmp_path.iterdir()) == []


def test_one_place_expands_a_home_folder():
  found = [
    str(path.relative_to(PACKAGE))
    for path in sorted(PACKAGE.rglob("*.py"))
    if "expanduser" in path.read_text("utf-8")
  ]
  assert found == ["files.py"]


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
