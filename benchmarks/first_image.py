"""Measures the seconds from a command to the demo's image, first and later.

  python benchmarks/first_image.py [--rounds=3] [--other=DIR]

Each round runs `python -m imagen_jax.sample --config=shapes` twice with an
empty compile cache at first. With --other, another checkout of this repository
is measured in turn, so that other load slows both. The medians of the rounds
are printed, and their ratios. Installing is not counted.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
PROMPT = "two red circles above a blue square on a yellow background"
CALLS = ("first", "second")


def run(checkout: pathlib.Path, folder: pathlib.Path) -> float:
  """Samples one image with a checkout's code and weights.

  Args:
    checkout: the root of the repository.
    folder: a folder for the image, the compile cache and the home folder.

  Returns:
    The seconds of the whole process.
  """
  env = dict(
    os.environ,
    PYTHONPATH=str(checkout),
    JAX_PLATFORMS="cpu",
    IMAGEN_JAX_COMPILE_CACHE=str(folder / "cache"),
    HOME=str(folder),
  )
  command = [sys.executable, "-m", "imagen_jax.sample"]
  command += [f"--config={checkout / 'configs' / 'shapes.py'}"]
  command += ["--config.batch_size=1"]
  command += [f"--prompt={PROMPT}", f"--outdir={folder / 'samples'}"]
  begun = time.monotonic()
  done = subprocess.run(
    command, env=env, cwd=checkout, capture_output=True, text=True
  )
  if done.returncode:
    raise SystemExit(f"{checkout}: {done.stderr}")
  return time.monotonic() - begun


def main() -> None:
  """Measures, and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--other", type=pathlib.Path, help="another checkout")
  args = parser.parse_args()
  sides = {"this": ROOT}
  if args.other:
    sides["other"] = args.other.resolve()
  found: dict[tuple[str, str], list[float]] = {}
  for i in range(args.rounds):
    for side, checkout in sides.items():
      with tempfile.TemporaryDirectory() as folder:
        for call in CALLS:
          seconds = run(checkout, pathlib.Path(folder))
          found.setdefault((side, call), []).append(seconds)
          print(f"round {i + 1}, {side}, {call}: {seconds:.1f} s", flush=True)
  print("\n| | first image, s | second, s |\n|---|---|---|")
  medians = {key: statistics.median(all_) for key, all_ in found.items()}
  for side in sides:
    first, second = (medians[side, call] for call in CALLS)
    print(f"| {side} | {first:.1f} | {second:.1f} |")
  if args.other:
    ratios = [medians["this", c] / medians["other", c] for c in CALLS]
    print(f"| ratio | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
  main()
