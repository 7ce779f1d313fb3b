"""Texts of anyone: quoted, read by lines, read as JSON."""

import json
import pathlib

import pytest

from imagen_jax import files

PACKAGE = pathlib.Path(files.__file__).parent


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
  assert calls == set()


@pytest.mark.parametrize(
  ("data", "said"),
  [
    (b"", "is not JSON: Expecting value"),
    (b"\xff", "is not JSON: 'utf-8' codec can't decode"),
    (b"[" * 100_000, "is nested too deeply, expected at most 100 levels"),
    (b'{"a":' * 100_000, "is nested too deeply"),
    (b"[" * 101 + b"]" * 101, "is nested too deeply"),
    (b"9" * 5000, "is not JSON: Exceeds the limit"),
    (b" " * 2**24 + b"1", "has over 16 MiB, expected less"),
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
