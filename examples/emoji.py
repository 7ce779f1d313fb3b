r"""Makes a folder of emoji images with English names, to train on.

  npm pack @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji@1.2.7
  pip install resvg_py==0.5.0
  python examples/emoji.py --output=EMOJI iconify-json-*.tgz
  python -m imagen_jax.prepare --source=EMOJI --output=DATA

Any set of emoji that Iconify packs for npm can be read. These two have 6,993
images: Noto of Google (Apache-2.0) and Fluent of Microsoft (MIT). Some 3,000
names are in both sets, so that a model can be asked for a style that it has not
seen of a concept. EMOJI/README.md names the sets and their licences.

Each image is a PNG on white, with a .txt beside it: one line for each name. The
name of the set is in the line, as in "grinning face, Noto Emoji". Run the same
command again to resume.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import sys
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

_TONES = re.compile(r"(.+?)-(light|medium-light|medium|medium-dark|dark)")
_MOST = 2**28  # bytes of a set


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the images of all sets."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("packages", nargs="+", help="what npm pack has written")
  parser.add_argument("--output", required=True, help="the folder to write")
  parser.add_argument("--size", type=int, default=256, help="pixels of a side")
  parser.add_argument("--only", help="names to draw, such as tiger,red-heart")
  args = parser.parse_args(argv)
  if args.size < 8:
    raise ValueError(f"--size is {args.size}, expected at least 8")
  output, only = pathlib.Path(args.output), args.only and args.only.split(",")
  jobs, notes = [], ["# Emoji, by examples/emoji.py of imagen_jax", ""]
  for package in args.packages:
    icons, info = read_set(package)
    folder = output / icons["prefix"]
    notes.append(
      f"- {folder.name}/: {info['name']} by {info['author']['name']}, licence"
      f" {info['license']['spdx']} ({info['license']['url']})"
    )
    for name, names in names_of(icons).items():
      if not only or name in only:
        captions = [f"{each}, {info['name']}" for each in names]
        jobs.append((folder / name, svg(icons, name), captions, args.size))
  if not jobs:
    raise ValueError(f"--only is {args.only!r}, expected names of the sets")
  write(output / "README.md", "\n".join([*notes, ""]).encode())
  draw_all(jobs)


def read_set(package: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Reads icons.json and info.json of a package; ValueError without them."""
  found = []
  try:
    with tarfile.open(package) as tar:
      for name in ("icons.json", "info.json"):
        member = tar.getmember(f"package/{name}")
        if member.size > _MOST:
          raise ValueError(f"{name} has {member.size:,} bytes")
        found.append(json.load(tar.extractfile(member)))
  except (OSError, KeyError, ValueError, tarfile.TarError) as error:
    raise ValueError(
      f"package {package} cannot be read ({error}), expected a set of Iconify"
      " as npm pack writes it"
    ) from error
  return found[0], found[1]


def names_of(icons: Mapping[str, Any]) -> dict[str, list[str]]:
  """Returns the English names of each icon: its own and its aliases'.

  An alias that is turned or mirrored is another image, and is left out.
  """
  known = icons["icons"]
  found = {name: [spoken(name, known)] for name in known}
  for alias, entry in icons.get("aliases", {}).items():
    if entry.keys() == {"parent"} and entry["parent"] in found:
      found[entry["parent"]].append(spoken(alias, known))
  return found


def spoken(name: str, known: Mapping[str, Any]) -> str:
  """Writes an icon's name as words; sets write skin tones in two ways."""
  tone = _TONES.fullmatch(name)
  if tone and tone[1] in known:
    name = f"{tone[1]}: {tone[2]} skin tone"
  elif name.endswith("-skin-tone"):
    tone = _TONES.fullmatch(name.removesuffix("-skin-tone"))
    if tone:
      name = f"{tone[1]}: {tone[2]} skin tone"
  return name.replace("-", " ")


def svg(icons: Mapping[str, Any], name: str) -> str:
  """Returns an icon as an SVG file."""
  icon = icons["icons"][name]
  width, height = (
    icon.get(side, icons.get(side, 16)) for side in ("width", "height")
  )
  return (
    '<svg xmlns="http://www.w3.org/2000/svg"'
    ' xmlns:xlink="http://www.w3.org/1999/xlink"'
    f' viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
  )


def draw(
  path: pathlib.Path, image: str, captions: Sequence[str], size: int
) -> None:
  """Writes an image and its captions, unless they are there."""
  import resvg_py  # in the process that draws

  text = path.with_suffix(".txt")
  if text.exists():  # written last
    return
  drawn = resvg_py.svg_to_bytes(
    image, width=size, height=size, background="#ffffff"
  )
  write(path.with_suffix(".png"), bytes(drawn))
  write(text, "".join(f"{caption}\n" for caption in captions).encode())


def write(path: pathlib.Path, data: bytes) -> None:
  """Writes a file whole or not at all; prepare ignores hidden files."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f".{path.name}.part")
  part.write_bytes(data)
  part.replace(path)


def draw_all(jobs: Sequence[tuple]) -> None:
  """Draws all images, on all cores."""
  with concurrent.futures.ProcessPoolExecutor() as pool:
    running = [pool.submit(draw, *job) for job in jobs]
    done = concurrent.futures.as_completed(running)
    for future in tqdm(done, total=len(jobs), unit="image"):
      future.result()


if __name__ == "__main__":
  try:
    main()
  except (ImportError, ValueError) as error:
    sys.exit(f"error: {error}")
