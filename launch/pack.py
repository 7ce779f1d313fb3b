#!/usr/bin/env python3
"""Packs what workers and images need: a wheel, configs/, launch/ and the lock.

  launch/pack.py build/NAME.tgz     for launch/tpu_vm.sh setup
  launch/pack.py build/image        for launch/xpk.sh image

Of a git checkout, the files are those that git tracks, and new files that it
does not ignore. Elsewhere they are all files. Links out of these, hidden files,
large files and files that look like keys or logs stay behind; each is named.
Everything that is packed is listed, with its size.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import launcher

LOCK = "requirements-lock.txt"
FOLDERS = ("configs", "launch")
# What the wheel is built of.
SOURCES = (
  *("imagen_jax", "configs", "setup.py", "pyproject.toml", "README.md"),
  *("LICENSE", "MANIFEST.in"),
)
SHIPPED = (".py", ".model", ".safetensors")  # of the package's folders
MANIFEST = "packed.txt"  # lists what is packed, and marks a folder as made here
LARGEST = 2**26  # bytes of a file; T5's files are of gigabytes
# Keys, certificates, logs and variables, by their names.
PRIVATE_NAME = re.compile(
  r"\..*|id_[a-z0-9]+|.*\.(pem|key|p12|pfx|jks|ppk|env|log|out|err)|"
  r"(.*[^a-z])?(secrets?|tokens?|credentials?|passwords?)([^a-z].*)?",
  re.IGNORECASE,
)
# Older setuptools need the package wheel.
CAN_BUILD = """
import setuptools
if int(setuptools.__version__.split(".")[0]) < 71:
  import wheel
"""
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def size(count: int) -> str:
  """Formats a number of bytes."""
  for unit in ("B", "kB", "MB"):
    if count < 1000:
      return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
    count /= 1000
  return f"{count:.1f} GB"


def git_files(root: pathlib.Path) -> list[str]:
  """Lists what git tracks, and what is new and not ignored."""
  words = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
  words += ["--exclude-standard", "--", *FOLDERS, *SOURCES, LOCK]
  env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
  try:
    done = subprocess.run(words, capture_output=True, env=env)
    reason = os.fsdecode(done.stderr).strip().splitlines()
    failed = done.returncode != 0
  except OSError as error:
    reason, failed = [error.strerror or str(error)], True
  if failed:
    raise ValueError(
      f"git cannot list the files of {root} ({' '.join(reason[:1])}), expected "
      "a checkout that git can read, or a copy without .git."
    )
  return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def all_files(root: pathlib.Path) -> list[str]:
  """Lists all files of what is packed, and links to folders."""
  found = [name for name in (*SOURCES, LOCK) if (root / name).is_file()]
  for top in {*FOLDERS, "imagen_jax"}:
    for folder, folders, names in os.walk(root / top):
      folders[:] = [name for name in folders if name != "__pycache__"]
      links = [n for n in folders if os.path.islink(os.path.join(folder, n))]
      found += [
        os.path.relpath(os.path.join(folder, name), root)
        for name in (*names, *links)
      ]
  return found


def unfit(root: pathlib.Path, name: str, known: set[str]) -> str:
  """Returns why a file is not packed, or "" if it is."""
  path = root / name
  private = next(filter(PRIVATE_NAME.fullmatch, pathlib.Path(name).parts), "")
  if private:
    return "looks like a key, a log or settings of your own"
  # A link, or a file below one.
  target = os.path.relpath(os.path.realpath(path), os.path.realpath(root))
  if target != name and (
    target not in known or unfit(root, target, known - {name})
  ):
    return "is a link to what is not packed"
  if not path.is_file():
    return "is no file"
  if path.stat().st_size > LARGEST:
    return f"is larger than {size(LARGEST)}"
  if PRIVATE_KEY.search(path.read_bytes()):
    return "holds a private key"
  return ""


def choose(root: pathlib.Path) -> list[str]:
  """Returns the files to pack; names those that stay behind.

  Raises:
    ValueError: the folder is no checkout or copy of the project.
  """
  in_git = (root / ".git").exists()
  if not in_git:
    print("no .git here: all files count, ignored ones too")
  listed = sorted({*(git_files(root) if in_git else all_files(root))})
  listed = [name for name in listed if os.path.lexists(root / name)]
  found = []
  for name in listed:
    # The package's link to configs/ is not needed: setup.py knows its place.
    if name.startswith("imagen_jax/") and not name.endswith(SHIPPED):
      continue
    if why := unfit(root, name, {*listed}):
      print(f"left out {launcher.shown(name)}: it {why}")
    else:
      found.append(name)
  for name in (LOCK, "setup.py", "imagen_jax/__init__.py"):
    if name not in found:
      raise ValueError(
        f"{root} has no {name}, expected a checkout of imagen_jax or its copy."
      )
  return found


def copy(root: pathlib.Path, names: list[str], out: pathlib.Path) -> None:
  """Copies files with their folders; links become what they lead to."""
  for name in names:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / name, out / name)


def build_wheel(
  root: pathlib.Path, source: pathlib.Path, out: pathlib.Path
) -> None:
  """Builds the package's wheel; ValueError if this machine cannot."""
  python = root / ".venv" / "bin" / "python"
  python = str(python) if python.exists() else sys.executable
  words = [python, "-m", "pip", "--disable-pip-version-check", "wheel", "-q"]
  words += ["--no-deps", "--wheel-dir", str(out)]
  # Where setuptools cannot make wheels, pip fetches another one from a package
  # index.
  probe = [python, "-c", CAN_BUILD]
  if subprocess.run(probe, capture_output=True).returncode == 0:
    words.append("--no-build-isolation")
  done = subprocess.run([*words, str(source)], capture_output=True, text=True)
  if done.returncode or not list(out.glob("*.whl")):
    reason = (done.stderr.strip() or "pip made none").splitlines()[-1]
    raise ValueError(
      f"the wheel cannot be built ({reason}), expected {python} to have pip "
      "and setuptools 71 or newer, as the .venv of launch/environment.sh has."
    )


def list_files(folder: pathlib.Path) -> str:
  """Returns a line for every file of a folder, with its size."""
  paths = sorted(path for path in folder.rglob("*") if path.is_file())
  sizes = [path.stat().st_size for path in paths]
  lines = [
    f"{size(count):>9}  {path.relative_to(folder).as_posix()}"
    for count, path in zip(sizes, paths)
  ]
  lines.append(f"{size(sum(sizes)):>9}  in {len(paths)} files")
  return "".join(f"{line}\n" for line in lines)


def put(folder: pathlib.Path, output: pathlib.Path) -> None:
  """Moves a folder to its place, or makes an archive of it there."""
  if output.suffix == ".tgz":
    part = folder.with_suffix(".tgz")
    with tarfile.open(part, "w:gz") as archive:
      archive.add(folder, ".", filter=anonymous)
    os.replace(part, output)
    return
  if output.exists():
    shutil.rmtree(output)
  os.replace(folder, output)


def check_output(output: pathlib.Path) -> None:
  """Raises ValueError if the output would replace what pack.py did not make."""
  ours = output.suffix == ".tgz" or (output / MANIFEST).is_file()
  if output.is_symlink() or (output.exists() and not ours):
    raise ValueError(
      f"{output} is there and was not made by launch/pack.py, expected another "
      "name or nothing."
    )


def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
  """Returns an archive's entry without this machine's user."""
  info.uid = info.gid = 0
  info.uname = info.gname = "root"
  return info


def pack(root: pathlib.Path, output: pathlib.Path) -> None:
  """Packs a checkout into a folder or, named *.tgz, an archive.

  Raises:
    ValueError: the checkout or the output is none, or no wheel can be built.
  """
  check_output(output)
  names = choose(root)
  output.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=output.parent, prefix=".pack-") as made:
    source, folder = pathlib.Path(made, "source"), pathlib.Path(made, "packed")
    copy(root, [n for n in names if n.split("/")[0] in SOURCES], source)
    kept = [n for n in names if n.split("/")[0] in (*FOLDERS, LOCK)]
    copy(root, kept, folder)
    build_wheel(root, source, folder)
    listing = list_files(folder)
    (folder / MANIFEST).write_text(listing, "utf-8")
    put(folder, output)
  print(listing, end="")
  print(f"packed into {output}", flush=True)


def make_parser() -> launcher.Parser:
  """Returns the parser of the flags, of which there are none."""
  return launcher.Parser("launch/pack.py", __doc__, "OUTPUT")


def body(parser: launcher.Parser, words: list[str]) -> None:
  """Runs the program."""
  if not words or not words[0] or words[0].startswith("-"):
    raise ValueError("OUTPUT is needed, such as build/NAME.tgz, see --help.")
  parser.read(words[1:])
  pack(launcher.ROOT, pathlib.Path(words[0]))


if __name__ == "__main__":
  launcher.main(make_parser(), body)
