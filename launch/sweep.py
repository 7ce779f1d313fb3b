"""Trains once for every point of a config's sweep().

  python launch/sweep.py --config=configs/x.py --workdir=ROOT [--dry_run]
    [--run="launch/slurm.sh --name={name} --"] [--config.KEY=VALUE ...]

The config file defines, beside get_config(), the points as a generator:

  def sweep():
    for width in (128, 192):
      yield {"stage.net.embed_dim": width, "optimizer.learning_rate": 1e-4}

A point's name, such as embed_dim=128-learning_rate=0.0001, depends only on
sweep(), and ROOT/NAME is its workdir. Run the same command again to resume:
finished points return at once. --run is put before every command, with {name}
and {index} filled in; without it the commands run here. They run one after
another, also after a failure. --dry_run prints them.
"""

import argparse
import hashlib
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Configs import each other from the repository's root.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from imagen_jax import build
from imagen_jax.build import configs
from imagen_jax.cli import command_line, program

NAME_LENGTH = 100
Point = Mapping[str, Any]


def load(name: str) -> Any:
  """Loads a config file as a module; ValueError if it has no sweep()."""
  module = configs.load_module(name)
  if not callable(getattr(module, "sweep", None)):
    raise ValueError(
      f"{name} has no sweep(), expected one that yields points such as "
      "{'stage.net.embed_dim': 192}"
    )
  return module


def configured(name: str, overrides: Sequence[str]) -> Any:
  """Returns the config that train reads from --config=NAME and overrides."""
  define = lambda values: command_line.define_config(values, "configs/x.py")
  return command_line.parse(define, [f"--config={name}", *overrides]).config


def settings(point: Point) -> list[str]:
  """Formats a point as flags; ValueError if it is no mapping."""
  if not isinstance(point, Mapping):
    raise ValueError(f"sweep() yields {point!r}, expected a dict")
  return [f"--config.{key}={text(key, v)}" for key, v in point.items()]


def check(path: str, overrides: Sequence[str], point: Point) -> None:
  """Raises ValueError if train would refuse the config at this point."""
  words = [*overrides, *settings(point)]
  try:
    config = configured(path, words)
    build.run(config)
  except ValueError as error:
    raise ValueError(f"sweep()'s point {point}: {error}") from error


def text(key: str, value: Any) -> str:
  """Formats a value for --config.KEY=VALUE; ValueError for other types."""
  if isinstance(value, tuple):
    return repr(tuple(value))
  if not isinstance(value, bool | int | float | str):
    raise ValueError(
      f"sweep() sets {key} to {value!r}, expected a number, a string, a bool "
      "or a tuple"
    )
  return str(value)


def short_keys(points: Sequence[Point]) -> dict[str, str]:
  """Returns each key's shortest ending that no other key of the sweep has."""
  keys = sorted({key for point in points for key in point})
  short = {}
  for key in keys:
    parts = key.split(".")
    endings = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
    alone = (
      ending
      for ending in endings
      if not any(f".{k}".endswith(f".{ending}") for k in keys if k != key)
    )
    short[key] = next(alone, key)
  return short


def name_of(point: Point, short: Mapping[str, str]) -> str:
  """Returns a readable name for a folder; a changed name ends with a hash."""
  pairs = []
  for key in sorted(point, key=short.__getitem__):
    value = point[key]
    label = ",".join(map(str, value)) if isinstance(value, tuple) else value
    pairs.append(f"{short[key]}={label}")
  whole = "-".join(pairs) or "unchanged"
  name = re.sub(r"[^\w.,=+-]", "_", whole, flags=re.ASCII)[:NAME_LENGTH]
  if name == whole:
    return name
  return f"{name}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def commands(
  path: str, workdir: str, run: str, overrides: Sequence[str]
) -> dict[str, list[str]]:
  """Returns each point's command by its name; ValueError for a bad point."""
  module = load(path)
  points = list(module.sweep())
  for point in points:
    check(path, overrides, point)
  short, found = short_keys(points), {}
  for index, point in enumerate(points):
    name = name_of(point, short)
    if name in found:
      raise ValueError(f"sweep() yields the point {name} twice")
    before = [
      word.replace("{name}", name).replace("{index}", str(index))
      for word in shlex.split(run)
    ]
    found[name] = [
      *before,
      *("python", "-m", "imagen_jax.train"),
      f"--config={path}",
      f"--workdir={workdir.rstrip('/')}/{name}",
      *overrides,
      *settings(point),
    ]
  if not found:
    raise ValueError(f"{path}: sweep() yields no point")
  return found


def run_all(found: Mapping[str, Sequence[str]]) -> None:
  """Runs all commands in order; ValueError names the commands that failed."""
  bin_folder = pathlib.Path(sys.executable).parent
  path = f"{bin_folder}{os.pathsep}{os.environ.get('PATH', '')}"
  failed = []
  for index, (name, words) in enumerate(found.items()):
    print(f"[{index + 1}/{len(found)}] {shlex.join(words)}", file=sys.stderr)
    try:
      code = subprocess.run(words, env={**os.environ, "PATH": path}).returncode
    except OSError as error:
      raise ValueError(f"--run: {words[0]}: {error.strerror}") from error
    if code:
      failed.append(f"{name} (exit code {code})")
  if failed:
    raise ValueError(
      f"{len(failed)} of {len(found)} runs failed: {', '.join(failed)}"
    )


def main() -> None:
  """Parses the command line and runs or prints the sweep."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument("--config", required=True)
  parser.add_argument("--workdir", required=True)
  parser.add_argument("--run", default="")
  parser.add_argument("--dry_run", action="store_true")
  args, overrides = parser.parse_known_args()
  for word in overrides:
    if not word.startswith("--config."):
      parser.error(f"unexpected {word!r}, expected --config.KEY=VALUE")
  try:
    found = commands(args.config, args.workdir, args.run, overrides)
    if args.dry_run:
      print("\n".join(map(shlex.join, found.values())))
    else:
      run_all(found)
  except ValueError as error:
    program.fail(str(error), 1)
  except KeyboardInterrupt:
    program.fail("interrupted", 130)


if __name__ == "__main__":
  main()
