"""examples/emoji.py: names, aliases and files, from sets as npm packs them."""

import importlib.util
import io
import json
import pathlib
import sys
import tarfile
import types

import pytest
from PIL import Image

from imagen_jax.data.prepare.sources import open_source

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "tests" / "data" / "emoji"
spec = importlib.util.spec_from_file_location(
  "emoji_example", ROOT / "examples" / "emoji.py"
)
emoji = importlib.util.module_from_spec(spec)
spec.loader.exec_module(emoji)

BODY = '<rect width="64" height="128" fill="#f00"/>'
ICONS = {
  "prefix": "red",
  "icons": {name: {"body": BODY} for name in (
    "tiger", "traffic-light", "man-beard", "man-beard-medium",
    "man-beard-medium-dark", "hand-dark-skin-tone",
  )},
  "aliases": {
    "big-cat": {"parent": "tiger"},
    "tiger-left": {"parent": "tiger", "hFlip": True},
    "lost": {"parent": "gone"},
  },
  "width": 128,
  "height": 128,
}  # fmt: skip
INFO = {
  "name": "Red Emoji",
  "author": {"name": "A"},
  "license": {"spdx": "MIT", "url": "b"},
}


def write_package(path, **contents):
  with tarfile.open(path, "w:gz") as tar:
    for name, value in contents.items():
      data = json.dumps(value).encode()
      member = tarfile.TarInfo(f"package/{name}.json")
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  return str(path)


@pytest.fixture
def drawn(monkeypatch):
  """Draws in this process; without resvg_py all images are white."""

  def white(image, width, height, background):
    file = io.BytesIO()
    Image.new("RGB", (width, height), background).save(file, "png")
    return file.getvalue()

  try:
    import resvg_py  # noqa: F401
  except ImportError:
    module = types.SimpleNamespace(svg_to_bytes=white)
    monkeypatch.setitem(sys.modules, "resvg_py", module)
  monkeypatch.setattr(
    emoji, "draw_all", lambda jobs: [emoji.draw(*job) for job in jobs]
  )


def test_a_folder_that_prepare_reads(drawn, tmp_path):
  package = write_package(tmp_path / "red.tgz", icons=ICONS, info=INFO)
  argv = [package, f"--output={tmp_path}/out", "--size=16"]
  emoji.main(argv)
  source = open_source(tmp_path / "out", per_part=100)
  found = {r.key: [c for c in r.captions if c] for r in source.read(0)}
  assert found == {
    "red/tiger.png": ["tiger, Red Emoji", "big cat, Red Emoji"],
    "red/traffic-light.png": ["traffic light, Red Emoji"],
    "red/man-beard.png": ["man beard, Red Emoji"],
    "red/man-beard-medium.png": ["man beard: medium skin tone, Red Emoji"],
    "red/man-beard-medium-dark.png": [
      "man beard: medium-dark skin tone, Red Emoji".replace("-", " ")
    ],
    "red/hand-dark-skin-tone.png": ["hand: dark skin tone, Red Emoji"],
  }
  with Image.open(tmp_path / "out" / "red" / "tiger.png") as image:
    assert image.size == (16, 16)
    assert image.convert("RGB").getpixel((15, 8)) == (255, 255, 255)
  notes = (tmp_path / "out" / "README.md").read_text()
  assert "- red/: Red Emoji by A, licence MIT (b)" in notes


def test_what_is_there_is_not_drawn_again(drawn, tmp_path):
  package = write_package(tmp_path / "red.tgz", icons=ICONS, info=INFO)
  argv = [package, f"--output={tmp_path}/out", "--size=16", "--only=tiger"]
  emoji.main(argv)
  path = tmp_path / "out" / "red" / "tiger.png"
  path.write_bytes(b"kept")
  emoji.main(argv)
  assert path.read_bytes() == b"kept"
  assert [p.name for p in path.parent.glob("*.png")] == ["tiger.png"]


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (["--only=lion"], "--only is 'lion', expected names of the sets"),
    (["--size=4"], "--size is 4, expected at least 8"),
    (["gone.tgz"], "package gone.tgz cannot be read .*No such file"),
    (["EMPTY"], "package .* cannot be read .*icons.json.*, expected a set of "),
  ],
)
def test_bad_input_is_one_sentence(drawn, tmp_path, argv, said):
  empty = write_package(tmp_path / "empty.tgz")
  package = write_package(tmp_path / "red.tgz", icons=ICONS, info=INFO)
  argv = [empty if word == "EMPTY" else word for word in argv]
  with pytest.raises(ValueError, match=said):
    emoji.main([package, *argv, f"--output={tmp_path}/out"])
  assert not (tmp_path / "out").exists()


def test_the_tests_images_are_what_the_example_writes():
  records = list(open_source(SHIPPED, per_part=100).read(0))
  assert len(records) == 12 and not any(r.reason for r in records)
  assert {c for r in records for c in r.captions if "tiger" in c} == {
    "tiger, Noto Emoji", "tiger, Fluent Emoji",
  }  # fmt: skip
