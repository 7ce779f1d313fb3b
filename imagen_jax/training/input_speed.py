"""The images per second that this host reads, and that its chips need."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from imagen_jax.data.examples import (
  BadRecords,
  bad_sentence,
  small_sentence,
)
from imagen_jax.data.feed import Feed
from imagen_jax.data.pipeline import usable_cores
from imagen_jax.interop import published
from imagen_jax.parallel.peaks import PEAK_TFLOPS
from imagen_jax.training.batches import check_splits, open_batches
from imagen_jax.training.setup import Run, batch_shapes, net_shapes
from imagen_jax.training.summary import model_flops

MFU = 0.4  # the share of the peak that a well-fed step is expected to reach
WARM_UP = 2  # batches, in which files are opened
SECONDS = 10.0
_BUSY = 0.75  # the share from which cores, or reads, count as all in use


@dataclasses.dataclass(frozen=True)
class Chips:
  """Describes the accelerators to feed.

  Attributes:
    name: what they are called.
    hosts: the number of hosts that feed them.
    peak_flops: the bfloat16 operations per second of all of them; None if their
      kind is unknown.
    host: which of the hosts this process is.
  """

  name: str
  hosts: int
  peak_flops: float | None
  host: int = 0


@dataclasses.dataclass(frozen=True)
class Measured:
  """Holds what was measured of this process.

  Attributes:
    images: the number of images that came.
    seconds: the time that they took.
    cpu_seconds: the seconds of cores that the whole process took meanwhile.
    reads: the number of records read, bad and small ones included.
    read_seconds: the time of all reads, of which many run at once.
    read_bytes: the bytes of image files read; 0 for images that are arrays.
  """

  images: int
  seconds: float
  cpu_seconds: float
  reads: int
  read_seconds: float
  read_bytes: int

  @property
  def rate(self) -> float:
    """The images per second."""
    return self.images / self.seconds


class Watched(Sequence):
  """Counts the reads of records, the time that they take and their bytes.

  Args:
    source: the records, which several threads may read.

  Attributes:
    totals: (records, seconds, bytes of image files) read so far.
  """

  def __init__(self, source: Sequence[Mapping[str, Any]]):
    self.totals = (0, 0.0, 0)
    self._source = source
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Mapping[str, Any]:
    begun = time.monotonic()
    record = self._source[index]
    taken = time.monotonic() - begun
    image = record.get("image")
    size = len(image) if isinstance(image, bytes) else 0
    with self._lock:
      count, seconds, total = self.totals
      self.totals = (count + 1, seconds + taken, total + size)
    return record


def totals(watched: Sequence[Watched]) -> list[float]:
  """Adds up the totals of several sources."""
  return [sum(each) for each in zip(*(one.totals for one in watched))]


def time_input(run: Run, chips: Chips, log: Callable[[str], None]) -> None:
  """Measures how fast this process reads a run's batches, and logs it.

  It prepares the dataset if that is not there, and writes nothing else. It
  reads the vocabulary, but no weights and no checkpoint.

  Args:
    run: the run's settings.
    chips: what is to be fed.
    log: logs a line.

  Raises:
    ValueError: the data or the vocabulary cannot be used, no record comes for
      data.patience seconds, or there are more hosts than examples in a batch.
  """
  data = run.data
  if data.batch_size < chips.hosts:
    raise ValueError(
      f"batch_size is {data.batch_size}, expected at least {chips.hosts}: an"
      f" example for each host of {chips.name}"
    )
  tokenizer = published.tokenizer(run.text)
  splits = {"data.split": data.split}
  check_splits(data, splits, captions=tokenizer is not None)
  if chips.peak_flops is None:
    log(
      f"needed: not known, like the peak speed of {chips.name}; name the chips"
      " to feed, such as --topology=v5e-256"
    )
    need = None
  else:
    flops = step_flops(run)
    log(need_sentence(flops, data.batch_size, chips))
    need = needed_rate(flops, data.batch_size, chips)
  log(f"measuring for {SECONDS:g} s ...")
  bad = BadRecords(data.max_bad_share)
  speed = measure(run, tokenizer, chips, bad, log)
  for line in speed_lines(speed, run):
    log(line)
  if bad.count:
    log(bad_sentence(bad.count, bad.read, bad.reasons))
  if bad.small:
    log(small_sentence(bad.small, bad.read))
  if need:
    log(verdict(speed, need, cores(run)))


def own_chips() -> Chips:
  """Describes the devices of this job."""
  devices = jax.devices()
  kind = devices[0].device_kind
  peak = PEAK_TFLOPS.get(kind)
  return Chips(
    f"{len(devices)} x {kind}",
    jax.process_count(),
    peak and len(devices) * peak * 1e12,
    jax.process_index(),
  )


def cores(run: Run) -> int:
  """Returns the number of cores on which a run may decode."""
  return min(run.data.threads or usable_cores(), usable_cores())


def measure(
  run: Run,
  tokenizer: Any,
  chips: Chips,
  bad: BadRecords,
  log: Callable[[str], None],
) -> Measured:
  """Reads the batches of this host for SECONDS, after a warm-up."""
  data, watched = run.data, []
  count = data.batch_size // chips.hosts
  first = count * chips.host
  batches = open_batches(
    run.stage, data, tokenizer,
    split=data.split, batch_size=data.batch_size,
    rows=range(first, first + count), bad=bad,
    watch=lambda source: watched.append(Watched(source)) or watched[-1],
  )  # fmt: skip
  feed = Feed(batches, patience=data.patience, log=log)
  with contextlib.closing(feed):
    for _ in range(WARM_UP):
      next(feed)
    images, seconds, begun = 0, 0.0, time.monotonic()
    cpu, before = time.process_time(), totals(watched)
    while not images or seconds < SECONDS:
      images += len(next(feed)["image"])
      seconds = time.monotonic() - begun
    cpu = time.process_time() - cpu
    reads, read_seconds, read_bytes = (
      after - first for after, first in zip(totals(watched), before)
    )
  return Measured(images, seconds, cpu, reads, read_seconds, read_bytes)


def step_flops(run: Run) -> int:
  """Counts the model's operations in a step of a run, as the log does."""
  params, text = net_shapes(run.stage, run.text), run.text.shapes()
  embedder = run.text.embedder
  return model_flops(run.stage, embedder, params, text, batch_shapes(run))


def needed_rate(flops: int, batch_size: int, chips: Chips) -> float:
  """Returns the images per second that each host has to read."""
  return batch_size / chips.hosts / (flops / (MFU * chips.peak_flops))


def speed_lines(speed: Measured, run: Run) -> list[str]:
  """Formats what was measured: in all, of reads and of computing."""
  read = f", {speed.read_bytes / speed.seconds / 1e6:,.1f} MB/s of image files"
  return [
    f"input: {speed.rate:,.1f} images/s"
    + read * (speed.read_bytes > 0)
    + f", {speed.images / speed.cpu_seconds:,.1f} images/s per core, in"
    f" {speed.seconds:.1f} s",
    f"reads: {1e3 * speed.read_seconds / max(1, speed.reads):.1f} ms a record,"
    f" {speed.read_seconds / speed.seconds:.1f} of at most {run.data.reads} at"
    " once",
    f"cores: {1e3 * speed.cpu_seconds / speed.images:.1f} ms of a core an"
    f" image, {speed.cpu_seconds / speed.seconds:.1f} of {cores(run)} in use;"
    f" {limit(speed, run)}",
  ]


def limit(speed: Measured, run: Run) -> str:
  """Names what limits the speed."""
  if speed.cpu_seconds > _BUSY * speed.seconds * cores(run):
    return "the cores are the limit"
  if speed.read_seconds > _BUSY * speed.seconds * run.data.reads:
    return "reads are the limit: raise data.reads"
  return "neither is the limit: other programs or Python's lock may be"


def need_sentence(flops: int, batch_size: int, chips: Chips) -> str:
  """Describes what the chips need, and of what that was computed."""
  seconds = flops / (MFU * chips.peak_flops)
  return (
    f"needed: {needed_rate(flops, batch_size, chips):,.1f} images/s a host:"
    f" a batch of {batch_size:,} over {chips.hosts} host(s) every"
    f" {seconds:.3g} s, which {flops / 1e15:.3g} PFLOP take at {MFU:.0%} of the"
    f" peak of {chips.name}"
  )


def verdict(speed: Measured, need: float, count: int) -> str:
  """States whether the measured speed suffices, and how many cores would."""
  share = speed.rate / need
  if share >= 1:
    return f"enough: this host reads {share:.1f} times what is needed"
  wanted = need * speed.cpu_seconds / speed.images
  return (
    f"not enough: this host reads {share:.1%} of what is needed, and the chips"
    f" would wait the rest of the time; {wanted:,.1f} cores like these {count}"
    " are needed, if reads keep up"
  )
