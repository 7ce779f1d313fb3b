"""Measures the images per second that a host reads for the paper's stages.

  python benchmarks/input_speed.py [--seconds=4] [--rounds=3] [--other=DIR]
  python benchmarks/input_speed.py --megapixels=0.3,1,3,6,12 [--seconds=4]

Records are JPEGs of 1024x768 pixels in memory, which decode like photographs. A
read of them takes no time, or 20 ms like a read of a bucket. With --other,
another checkout of this repository is measured in turn, so that other load
slows both. The medians of the rounds are printed, and their ratios. A core's
images are those per second of processor time.

The second command measures JPEGs of several sizes on one thread: a row for each
size and stage, with the images/s of a core that are decoded, that are decoded
and resized, and that come in batches, with the low-resolution image.
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
from collections.abc import Callable, Sequence

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


def photo(seed: int, megapixels: float = 1024 * 768 / 1e6) -> bytes:
  """Encodes an image of few high frequencies, as photographs have."""
  rng = np.random.default_rng(seed)
  height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
  size = round(height * 4 / 3), height
  image = np.zeros((*size[::-1], 3))
  for part, share in ((128, 0.5), (16, 0.3), (2, 0.1)):
    sides = height // part, size[0] // part
    small = Image.fromarray(rng.integers(0, 256, (*sides, 3), np.uint8))
    image += share * np.asarray(small.resize(size), np.float64)
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


def of_core(work: Callable[[int], int], seconds: float) -> float:
  """Returns the images per second of processor time of work(i) images."""
  work(0)  # files are read and tables made
  count, begun = 0, time.process_time()
  while (taken := time.process_time() - begun) < seconds:
    count += work(count)
  return count / taken


def of_sizes(megapixels: Sequence[float], seconds: float) -> None:
  """Prints a row for each size and stage, measured on one thread."""
  from imagen_jax.data import images
  from imagen_jax.data.pipeline import make_batches

  print("megapixels stage  | decoded | resized | batched, images/s of a core")
  for size in megapixels:
    files = [photo(seed, size) for seed in range(4)]
    for name, sizes in STAGES.items():
      side = sizes["size"]

      def decode(i, side=side, files=files):
        return images.decode(files[i % len(files)], side)

      def resize(i, side=side, decode=decode):
        image = images.to_float(images.central_square(decode(i)))
        images.to_uint8(images.resize(image, side))
        return 1

      batches = make_batches(
        Source(files, 0), tokenize=None, global_batch=ROWS, seed=0, threads=1,
        reads=1, buffer=1,  # little is read ahead and not counted
        **sizes,
      )  # fmt: skip
      row = [
        of_core(lambda i, decode=decode: len(decode(i)[:1]), seconds),
        of_core(resize, seconds),
        of_core(lambda i, b=batches: len(next(b)["image"]), seconds),
      ]
      batches.close()
      shown = " | ".join(f"{rate:7.1f}" for rate in row)
      print(f"{size:10g} {name:6} | {shown}", flush=True)


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
  parser.add_argument("--megapixels", help="sizes, such as 0.3,1,3,6,12")
  args = parser.parse_args()
  if args.megapixels:
    of_sizes([float(size) for size in args.megapixels.split(",")], args.seconds)
    return
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
