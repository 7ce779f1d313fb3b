r"""Prepares your own images and captions as a dataset to train on.

  python -m imagen_jax.prepare --source=FOLDER --output=DATA
  python -m imagen_jax.train --config=CONFIG --config.data.name=DATA \
    --workdir=RUN

DATA is a path of a disk or gs://. The source is a folder of images with
metadata.jsonl, .csv or .parquet, or with a .txt beside each image; webdataset
tars; parquet files with the bytes of images; or a TFDS dataset.
DATA/report.jsonl lists what was dropped and why, and DATA/preview.png shows
some of the rest. Run the same command again to resume. On many machines, run it
with --shard=0/N to --shard=N-1/N, and then with --finish. docs/own_images.md
explains it all.
"""

import concurrent.futures
import contextlib
import dataclasses
import os
import threading
import typing
from collections.abc import Callable, Sequence

from absl import flags
from etils import epath

from imagen_jax import files
from imagen_jax.cli import command_line, program
from imagen_jax.cli.command_line import chosen_shards
from imagen_jax.data.captions import check_template
from imagen_jax.progress import Progress, print_line

if typing.TYPE_CHECKING:
  from imagen_jax.data.prepare import shards, sources


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_path(
    values, "source", None, "The folder, tar or parquet file to read."
  )
  command_line.define_path(values, "output", None, "The folder to write.")
  flags.DEFINE_enum(
    "format", "auto", ("auto", "folder", "webdataset", "parquet", "tfds"),
    "The source's format; auto finds it by the names of files.", **on
  )  # fmt: skip
  flags.DEFINE_string(
    "image", None,
    "The column of images in parquet files, or the feature of a TFDS dataset.",
    **on
  )  # fmt: skip
  flags.DEFINE_string(
    "caption", None, "The column or feature of captions.", **on
  )
  flags.DEFINE_string("split", "train", "The split of a TFDS dataset.", **on)
  flags.DEFINE_string(
    "template", "{}",
    "For a TFDS dataset: the caption, with {} for the feature's text.", **on
  )  # fmt: skip
  flags.DEFINE_string(
    "shard", None, "I/N, 0 <= I < N: only writes every N-th shard.", **on
  )
  flags.DEFINE_boolean(
    "finish", False,
    "Only drops duplicates and writes metadata and report.", **on
  )  # fmt: skip
  flags.DEFINE_float(
    "validation", 0.01, "The share of records for the split validation.", **on
  )
  flags.DEFINE_integer("per_shard", 1000, "Records in a shard.", **on)
  flags.DEFINE_integer(
    "threads", None, "Shards written at once; by default one per core.", **on
  )
  flags.DEFINE_integer("least_side", 8, "Fewest pixels of a side.", **on)
  flags.DEFINE_integer("most_pixels", 2**26, "Most pixels of an image.", **on)
  flags.DEFINE_float("most_aspect", None, "Largest ratio of the sides.", **on)
  flags.DEFINE_integer(
    "least_caption", 1, "Fewest characters of a caption.", **on
  )
  flags.DEFINE_integer(
    "most_caption", None, "Most characters of a caption.", **on
  )
  flags.DEFINE_multi_string(
    "at_least", [], "COLUMN:VALUE, such as clip_score:0.3; repeatable.", **on
  )
  flags.DEFINE_multi_string(
    "at_most", [], "COLUMN:VALUE, such as nsfw:0.5; repeatable.", **on
  )
  flags.DEFINE_boolean(
    "duplicates", False, "Keeps records of equal image and captions.", **on
  )


def thresholds(flag: str, given: Sequence[str]) -> dict[str, float]:
  """Parses COLUMN:VALUE of a flag; ValueError if it is something else."""
  found = {}
  for text in given:
    name, _, value = text.rpartition(":")
    try:
      number = float(value)
    except ValueError:
      number = float("nan")
    if not name or number != number:
      raise ValueError(
        f"--{flag} is {text!r}, expected COLUMN:VALUE, such as score:0.3"
      )
    found[name] = number
  return found


def check_apart(source: str, output: str) -> None:
  """Raises ValueError for an output within the source: it would be read too."""
  inside = [os.path.normpath(path) for path in (output, source)]
  if not files.is_remote(source) and not files.is_remote(output):
    inside = [os.path.realpath(path) for path in (output, source)]
  if f"{inside[0]}/".startswith(f"{inside[1]}/"):
    raise ValueError(
      f"output {output} is within the source {source}, expected another folder"
    )


@dataclasses.dataclass(frozen=True)
class Preparation:
  """Holds the work of preparing a dataset, for engines that divide it.

  It can be pickled. The shards may be written in any order, by any processes,
  and more than once.

  Attributes:
    source: the records.
    plan: the shards and the filters.
    output: the folder to write.
  """

  source: "sources.Source"
  plan: "shards.Plan"
  output: epath.Path

  @property
  def count(self) -> int:
    """The number of shards."""
    return self.plan.count

  def write_shard(self, i: int, stop: threading.Event | None = None) -> None:
    """Writes shard i, 0 <= i < count, unless it is finished.

    Args:
      i: the shard's number.
      stop: ends the work with an error once it is set.

    Raises:
      ValueError: the shard cannot be written, as on a full disk.
    """
    # Imported here, because the core does not need the packages it imports.
    from imagen_jax.data.prepare import shards

    shards.write_shard(self.source, self.plan, self.output, i, stop)

  def finish(self) -> list[str]:
    """Drops duplicates, and writes the metadata and the report.

    Call it when all shards are written, in one process.

    Returns:
      The summary, in lines.

    Raises:
      ValueError: a shard is missing or damaged, no record is left, or another
        process writes to the output.
    """
    # Imported here, because the core does not need the packages it imports.
    from imagen_jax.data.prepare import finish

    with self.holding(alone=True):
      return finish.finish(self.plan, self.output)

  def holding(self, *, alone: bool) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes of this machine from the output in a with-block.

    Args:
      alone: excludes all others; False excludes only those that finish.
    """
    # Imported here, because the core does not need the packages it imports.
    from imagen_jax.data.prepare import shards

    return shards.holding(self.output, alone=alone)


def open_preparation(argv: Sequence[str]) -> Preparation:
  """Opens the preparation that a command line describes.

  Args:
    argv: flags of this verb, such as "--source=FOLDER" and "--output=DATA".

  Raises:
    ValueError: a flag is bad, the source cannot be read, or the output was
      begun with another source or other settings.
  """
  args = command_line.parse(define_flags, argv)
  for flag in ("shard", "finish", "threads"):
    if args[flag].present:
      raise ValueError(
        f"--{flag} divides the work of the verb, expected no such flag here"
      )
  return _open(args)


def _open(args: flags.FlagValues) -> Preparation:
  """Opens the source that flags name, and plans the shards of the output."""
  if not args.source or not args.output:
    raise ValueError("--source and --output are needed, see --help")
  command_line.check_at_least(args, "per_shard", 1)
  check_template("--template", args.template)
  # Imported here, because the core does not need the packages it imports.
  from imagen_jax.data.prepare import filters, shards, sources

  rules = filters.Filters(
    least_side=args.least_side,
    most_pixels=args.most_pixels,
    most_aspect=args.most_aspect,
    least_caption=args.least_caption,
    most_caption=args.most_caption,
    at_least=thresholds("at_least", args.at_least),
    at_most=thresholds("at_most", args.at_most),
  )
  program.check_folder("output", args.output)
  output = epath.Path(args.output)
  check_apart(args.source, args.output)
  source = sources.open_source(
    args.source, args.format,
    per_part=args.per_shard, image=args.image, caption=args.caption,
    split=args.split, template=args.template,
  )  # fmt: skip
  plan = shards.make_plan(
    source, rules, duplicates=args.duplicates, validation=args.validation
  )
  shards.keep_plan(plan, output)
  return Preparation(source, plan, output)


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Writes shards, the metadata, or both."""
  if args.shard is not None and args.finish:
    raise ValueError("--shard and --finish exclude each other, expected one")
  if args.threads is not None:
    command_line.check_at_least(args, "threads", 1)
  chosen_shards(args.shard, 0)
  work = _open(args)
  # Imported here, because the core does not need the packages it imports.
  from imagen_jax.data.pipeline import usable_cores

  if not args.finish:
    chosen = chosen_shards(args.shard, work.count)
    with (
      work.holding(alone=args.shard is None),
      Progress("prepare", len(chosen)) as progress,
    ):
      progress.start(0)
      threads = args.threads or usable_cores()
      write_all(work.write_shard, chosen, threads, progress)
  if args.shard is None:
    for line in work.finish():
      print_line(line)


def write_all(
  write: Callable[[int, threading.Event], None],
  chosen: Sequence[int],
  threads: int,
  progress: Progress,
) -> None:
  """Writes shards in threads: decoding releases Python's lock.

  Args:
    write: writes a shard, until the event that it is given is set.
    chosen: the numbers of the shards.
    threads: the shards to write at once.
    progress: shows how many are done.
  """
  stop = threading.Event()
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    try:
      running = [pool.submit(write, i, stop) for i in chosen]
      done = concurrent.futures.as_completed(running)
      for count, future in enumerate(done, 1):
        future.result()
        if count % max(1, len(running) // 100) == 0 or count == len(running):
          progress.show(count)
    except BaseException:
      stop.set()
      pool.shutdown(wait=False, cancel_futures=True)
      raise


if __name__ == "__main__":
  program.run(main)
