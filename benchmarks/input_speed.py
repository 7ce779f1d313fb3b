"""Measures the images per second that a host reads for the paper's stages.

  python benchmarks/input_speed.py [--seconds=4] [--rounds=3] [--other=DIR]

Records are JPEGs of 1024x768 pixels in memory, which decode like photographs. A
read of them takes no time, or 20 ms like a read of a bucket. With --other,
another checkout of this repository is measured in turn, so that other load
slows both. The medians of the rounds are printed, and their ratios. A core's
images are those per second of processor time.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
STAGES = {
  "base64": dict(size=64),
  "sr256": dict(size=256, lowres_size=64),
  "sr1024": dict(size=1024, lowres_size=256, crop=256),
}
DELAYS = (0.0, 0.02)  # seconds of a read
# Rows of a batch, and the fewest images to time. Small batches make the count
# exact: of some, only a part is computed within the time.
ROWS, LEAST = 4, 160


def photo(seed: int) -> bytes:
  """Encodes an image of few high frequencies, as photographs have."""
  rng = np.random.default_rng(seed)
  image = np.zeros((768, 1024, 3))
  for sides, share in (((6, 8), 0.5), ((48, 64), 0.3), ((384, 512), 0.1)):
    small = Image.fromarray(rng.integers(0, 256, (*sides, 3), np.uint8))
    image += share * np.asarray(small.resize((1024, 768)), np.float64)
  file = io.BytesIO()
  Image.fromarray(image.astype(np.uint8)).save(file, "jpeg", quality=90)
  return file.getvalue()


class Source:
  """Holds records that take some seconds to read."""

  def __init__(self, files: list[bytes], delay: float):
    self._files, self._delay = files, delay

  def __len__(self) -> int:
    return 1000 * len(self._files)

  def __getitem__(self, index: int) -> dict[str, bytes]:
    time.sleep(self._delay)
    return {"image": self._files[index % len(self._files)]}


def measure(seconds: float) -> dict[str, tuple[float, float]]:
  """Returns each stage's images per second, and those of a core."""
  from imagen_jax.data.pipeline import make_batches

  files, found = [photo(seed) for seed in range(8)], {}
  for name, sizes in STAGES.items():
    for delay in DELAYS:
      batches = make_batches(
        Source(files, delay), tokenize=None, global_batch=ROWS, seed=0, **sizes
      )
      for _ in range(2):
        next(batches)
      count, taken = 0, 0.0
      begun, cpu = time.monotonic(), time.process_time()
      while taken < seconds or count < LEAST:
        count += len(next(batches)["image"])
        taken = time.monotonic() - begun
      cpu = time.process_time() - cpu
      found[f"{name}, {1e3 * delay:.0f} ms"] = count / taken, count / cpu
      if hasattr(batches, "close"):
        batches.close()
      del batches
      time.sleep(0.5)  # for its threads to end
  return found


def of_checkout(folder: str, seconds: float) -> dict[str, tuple[float, float]]:
  """Measures the code of a checkout, in a process of its own."""
  done = subprocess.run(
    [sys.executable, __file__, "--child", f"--seconds={seconds}"],
    env=os.environ | {"PYTHONPATH": folder}, stdout=subprocess.PIPE,
    text=True, check=True,
  )  # fmt: skip
  return json.loads(done.stdout)


def main() -> None:
  """Prints a row for each stage and time of a read."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seconds", type=float, default=4)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--other")
  parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    print(json.dumps(measure(args.seconds)))
    return
  folders = [str(ROOT), *([args.other] if args.other else [])]
  rounds = [
    [of_checkout(folder, args.seconds) for folder in folders]
    for _ in range(args.rounds)
  ]
  print(f"{len(os.sched_getaffinity(0))} cores; images/s, and of a core")
  for name in rounds[0][0]:
    row = f"{name:15}"
    for i in range(len(folders)):
      pairs = zip(*(found[i][name] for found in rounds))
      row += " | {:7.1f} {:7.1f}".format(*map(statistics.median, pairs))
    if args.other:
      ratios = zip(*(
        [a / b for a, b in zip(this[name], other[name])]
        for this, other in rounds
      ))  # fmt: skip
      row += " | ratio {:.2f}, {:.2f}".format(*map(statistics.median, ratios))
    print(row)


if __name__ == "__main__":
  main()
