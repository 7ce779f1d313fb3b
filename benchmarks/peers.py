"""Compares imagen_jax with what a user would pick instead, side by side.

  python benchmarks/peers.py [--rows=train,sample8] [--rounds=3] [--json=FILE]
  python benchmarks/peers.py --device=gpu --env=FOLDER

Peers are imagen-pytorch, diffusers, transformers and torch's DataLoader. They
have an environment of their own, which the script makes in a cache folder.
Every measurement is a process. The two sides take turns, so that other load
slows both, and have equal numbers of threads. The medians of the rounds are
printed, and the ratio of the times. Parameters and operations of both are
counted and printed. Nets are compared in float32, on a GPU in bfloat16.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).parent
CORES = len(os.sched_getaffinity(0))
ENVIRONMENT = pathlib.Path(
  os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache",
  "imagen_jax/peers",
)
PACKAGES = ("torch", "torchvision", "diffusers", "transformers",
            "imagen-pytorch")  # fmt: skip
# The rows, and what the peer is.
ROWS = {
  "train": "imagen-pytorch",
  "sample1": "imagen-pytorch",
  "sample8": "imagen-pytorch",
  "sample64": "imagen-pytorch",
  "IF-I-M": "diffusers",
  "IF-I-XL": "diffusers",
  "t5-base": "transformers",
  "jpeg64": "DataLoader",
  "jpeg256": "DataLoader",
}
TOO_LARGE = ("sample64", "IF-I-XL")  # for a CPU, unless they are asked for
SIZE, BATCH, STEPS = 32, 16, 16  # of the small net: pixels, images, steps
TEXT = (32, 128)  # tokens, features
TOKENS = 77  # of T5, and of IF's prompts


def report(
  make: Callable[[], tuple[Callable[[], Any], dict[str, Any]]], calls: int
) -> None:
  """Measures one side of a row, and prints it as a line of JSON.

  Args:
    make: returns the work of one call, which waits for its result, and what is
      known of it: parameters, flops, items.
    calls: the calls to time, after a first one.
  """
  work, known = make()
  begun = time.monotonic()
  work()
  first = time.monotonic() - begun
  taken = []
  for _ in range(calls):
    begun = time.monotonic()
    work()
    taken.append(time.monotonic() - begun)
  peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  found = {
    "seconds": statistics.median(taken),
    "first_seconds": first,
    "peak_bytes": known.pop("peak_bytes", lambda: peak)(),
  }
  print(json.dumps(found | known))


def environment(folder: pathlib.Path) -> str:
  """Makes the peers' environment where it is missing; returns its Python."""
  python = folder / "bin" / "python"
  if not (folder / "made").exists():
    print(f"making the peers' environment in {folder} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES],
                   check=True)  # fmt: skip
    (folder / "made").touch()
  return str(python)


def side(
  python: str, file: str, row: str, folder: str, args: argparse.Namespace
) -> dict[str, Any]:
  """Measures one side of a row in a process of its own.

  Raises:
    RuntimeError: the process fails.
  """
  threads = str(args.threads)
  env = os.environ | {
    "OMP_NUM_THREADS": threads,
    "PYTHONPATH": str(HERE.parent),
    "IMAGEN_JAX_COMPILE_CACHE": "off",
  }
  if args.device == "cpu":
    env |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
  # Both sides run on the same cores, so that XLA has as many threads.
  cores = sorted(os.sched_getaffinity(0))[: args.threads]
  done = subprocess.run(
    [python, str(HERE / file), row, args.device, folder, str(args.calls)],
    env=env, capture_output=True, text=True,
    preexec_fn=lambda: os.sched_setaffinity(0, cores),
  )  # fmt: skip
  if done.returncode:
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    raise RuntimeError(f"{file} {row}: {last[0]}")
  return json.loads(done.stdout.strip().splitlines()[-1])


def compare(row: str, python: str, args: argparse.Namespace) -> dict[str, Any]:
  """Measures both sides of a row in turn; returns their medians."""
  sides = {
    "jax": (sys.executable, "peers_jax.py"),
    "peer": (python, "peers_torch.py"),
  }
  found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
  with tempfile.TemporaryDirectory() as folder:
    for _ in range(args.rounds):
      for name, (interpreter, file) in sides.items():
        found[name].append(side(interpreter, file, row, folder, args))
  medians = {
    name: one[0]
    | {
      key: statistics.median(each[key] for each in one)
      for key in ("seconds", "first_seconds", "peak_bytes")
    }
    for name, one in found.items()
  }
  pairs = zip(found["jax"], found["peer"], strict=True)
  ratio = statistics.median(p["seconds"] / o["seconds"] for o, p in pairs)
  return {"row": row, "with": ROWS[row], "faster": ratio, **medians}


def line(found: dict[str, Any]) -> str:
  """Formats a row of the table."""
  cells = [f"{found['row']}, {found['with']}"]
  for key, unit, form in (
    ("parameters", 1e6, "{:.1f}"),
    ("flops", 1e9, "{:.0f}"),
    ("seconds", 1e-3, "{:.1f}"),
    ("first_seconds", 1, "{:.1f}"),
    ("peak_bytes", 1e9, "{:.1f}"),
  ):
    cells.append(
      " / ".join(
        form.format(found[name][key] / unit) if key in found[name] else "-"
        for name in ("jax", "peer")
      )
    )
  rates = (found[n]["items"] / found[n]["seconds"] for n in ("jax", "peer"))
  cells.append(" / ".join(f"{rate:.4g}" for rate in rates))
  cells.append(f"{found['faster']:.2f}")
  return f"| {' | '.join(cells)} |"


def main() -> None:
  """Prints a row for each piece of work, and writes all as JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", default="")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--calls", type=int, default=5)
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument("--threads", type=int, default=CORES)
  parser.add_argument("--env", type=pathlib.Path, default=ENVIRONMENT)
  parser.add_argument("--json")
  args = parser.parse_args()
  large = TOO_LARGE if args.device == "cpu" else ()
  rows = args.rows.split(",") if args.rows else [
    row for row in ROWS if row not in large
  ]  # fmt: skip
  if unknown := [row for row in rows if row not in ROWS]:
    raise SystemExit(
      f"rows has {unknown[0]}, expected some of {', '.join(ROWS)}"
    )
  python = environment(args.env)
  print(
    "imagen_jax / the peer: | work | 10^6 parameters | GFLOP | ms"
    " | first call, s | peak, GB | items/s | times as fast |"
  )
  results = []
  for row in rows:
    try:
      results.append(compare(row, python, args))
      print(line(results[-1]), flush=True)
    except RuntimeError as error:  # of memory, or of a missing library
      print(f"| {row} | {error} |", flush=True)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
  main()
