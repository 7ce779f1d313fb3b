r"""Embeds the captions of a dataset once, so that training needs no encoder.

  python -m imagen_jax.embed --config=CONFIG --output=DIR
  python -m imagen_jax.train --config=CONFIG --config.data.embeddings=DIR \
    --workdir=RUN

It reads the splits that the config trains on, samples and validates with, and
encodes their captions by config.text. Run the same command again to resume. On
many machines, run it with --shard=0/N to --shard=N-1/N; the processes of one
JAX job share the shards by themselves. docs/text.md has the costs.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from etils import epath

from imagen_jax import build
from imagen_jax.cli import command_line, program
from imagen_jax.interop import published
from imagen_jax.parallel import compile_cache, mesh
from imagen_jax.progress import Progress, print_line
from imagen_jax.shapes.examples import Endless
from imagen_jax.text.buckets import BucketEncoder
from imagen_jax.text.settings import Text
from imagen_jax.text.tokenizer import Tokenizer


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes16.py")
  command_line.define_compile_cache(values)
  command_line.define_distributed(values)
  command_line.define_path(values, "output", None, "The folder to write.")
  flags.DEFINE_enum(
    "storage", "bfloat16", ("bfloat16", "int8"),
    "How a number is stored; int8 has a scale for each token.", **on
  )  # fmt: skip
  flags.DEFINE_integer(
    "per_shard", 10_000, "Records of the dataset whose captions make a shard.",
    **on
  )  # fmt: skip
  flags.DEFINE_string(
    "shard", None, "I/N, 0 <= I < N: only writes every N-th shard.", **on
  )


@dataclasses.dataclass
class Totals:
  """Adds up what this process has embedded.

  Attributes:
    captions: the number of captions.
    tokens: the number of their tokens.
    size: the bytes of what is stored.
    squares: the sum of squares of the embeddings, in float64.
    errors: the sum of squares of the errors of storing them.
    refused: the captions and records that cannot be used, by the reason.
  """

  captions: int = 0
  tokens: int = 0
  size: int = 0
  squares: float = 0.0
  errors: float = 0.0
  refused: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )

  def lines(self, storage: str) -> Iterator[str]:
    """Yields the lines to print."""
    error = (self.errors / max(self.squares, 1e-30)) ** 0.5
    yield (
      f"embedded {self.captions:,} captions, {self.tokens:,} tokens,"
      f" {self.size / 1e6:,.1f} MB; {storage} has a relative RMS error of"
      f" {error:.2%}"
    )
    count = self.refused.total()
    if count:
      (reason, _), *_ = self.refused.most_common(1)
      yield f"left out {count:,} captions and records, such as {reason}"


def own_shards(given: str | None, count: int) -> range:
  """Returns the shards of this process: by --shard, or by the JAX job.

  Raises:
    ValueError: --shard is not I/N, or there are many processes too.
  """
  if jax.process_count() == 1:
    return command_line.chosen_shards(given, count)
  if given is not None:
    raise ValueError(
      f"--shard is {given!r}, expected none: the {jax.process_count()}"
      " processes of this job share the shards"
    )
  return range(jax.process_index(), count, jax.process_count())


def captions_in(
  records: Sequence[Mapping[str, Any]],
  where: range,
  tokenizer: Tokenizer,
  totals: Totals,
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Reads the captions of some records, each once.

  Returns:
    The captions, their ids int32 [n, L] and mask bool [n, L].
  """
  from imagen_jax.data.captions import captions_of

  found = {}
  for i in where:
    try:
      captions = captions_of(records[i])
    except (OSError, RuntimeError, ValueError) as error:
      totals.refused[f"record {i}: {error}"] += 1
      continue
    for caption in captions:
      if caption in found:
        continue
      try:
        found[caption] = tokenizer([caption])
      except ValueError as error:
        totals.refused[f"record {i}: {error}"] += 1
  length = (0, tokenizer.length)
  ids = [ids for ids, _ in found.values()] or [np.zeros(length, np.int32)]
  mask = [mask for _, mask in found.values()] or [np.zeros(length, bool)]
  return [*found], np.concatenate(ids), np.concatenate(mask)


def embedded(
  encoder: BucketEncoder,
  captions: Sequence[str],
  ids: np.ndarray,
  mask: np.ndarray,
  plan: Any,
  totals: Totals,
) -> Iterator[tuple[str, bytes]]:
  """Yields captions with their tokens as the plan stores them; counts them."""
  for row, tokens in encoder(ids, mask):
    data = plan.encode(tokens)
    stored = np.asarray(plan.decode(data), np.float64)
    totals.captions += 1
    totals.tokens += len(tokens)
    totals.size += len(data)
    totals.squares += float((tokens.astype(np.float64) ** 2).sum())
    totals.errors += float(((stored - tokens) ** 2).sum())
    yield captions[row], data


def open_records(config: Any) -> list[tuple[str, Sequence[Mapping]]]:
  """Opens the records whose captions a config's training reads.

  Returns:
    (name and split, records) of each dataset, none of them twice.

  Raises:
    ValueError: a split cannot be used, or a dataset has no end.
  """
  from imagen_jax.training.batches import open_sources

  data, training = build.data(config.data), build.training(config.train)
  splits = {"data.split": data.split}
  if training.sample_every:
    splits["train.sample_split"] = training.sample_splits
  if training.validate_every:
    splits["train.validate_split"] = training.validate_splits
  found = {}
  for key, split in splits.items():
    mixture = open_sources(data, split, captions=True, key=key)
    for part, each in zip(data.parts, mixture.ingredients):
      if isinstance(each.records, Endless):
        raise ValueError(
          f"data.name is {part.name}, which has no end, expected a stored"
          " dataset"
        )
      mark = f"{each.records.fingerprint()} {part.caption} {part.template}"
      found.setdefault(mark, each.records)
  return [*found.items()]


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Writes this process's shards of embeddings."""
  config = args.config
  if not args.output:
    raise ValueError("--output is needed, see --help")
  command_line.check_at_least(args, "per_shard", 1)
  command_line.chosen_shards(args.shard, 0)
  text = build.required_text(config)
  program.check_folder("output", args.output)
  tokenizer = published.check_text(text)
  command_line.join_others(args)
  sources = open_records(config)
  devices = mesh.make_mesh(devices=jax.local_devices())
  with compile_cache.enabled(), jax.set_mesh(devices):
    params = build.load_text(text, build.text_placement(devices))
    rows = text.batch_size
    encoder = BucketEncoder(text.embedder, params, tokenizer, rows, devices)
    write_all(args, text, encoder, sources)


def write_all(
  args: flags.FlagValues,
  text: Text,
  encoder: BucketEncoder,
  sources: Sequence[tuple[str, Sequence[Mapping]]],
) -> None:
  """Writes this process's shards, and prints what they have."""
  # Imported here, because the core does not need the packages it imports.
  from imagen_jax.data import embeddings
  from imagen_jax.interop.embedded import encoder_of, notes

  output, tokenizer = epath.Path(args.output), encoder.tokenizer
  plan = embeddings.Plan(
    encoder_of(text, encoder.params, tokenizer.fingerprint),
    args.storage,
    text.length,
    text.dim,
    args.per_shard,
    tuple((mark, len(records)) for mark, records in sources),
    notes(text),
  )
  embeddings.keep_plan(plan, output)
  if not (output / embeddings.NULL).exists():
    embeddings.write_null(output, plan, encoder.empty())
  done = lambda i: embeddings.keys_path(output, plan, i).exists()
  chosen, totals = own_shards(args.shard, len(plan.shards)), Totals()
  quiet = jax.process_index() > 0
  with Progress("embed", len(chosen), unit="shard", quiet=quiet) as progress:
    progress.start(0)
    for count, i in enumerate(chosen, 1):
      if not done(i):
        source, where = plan.shards[i]
        captions, ids, mask = captions_in(
          sources[source][1], where, tokenizer, totals
        )
        rows = embedded(encoder, captions, ids, mask, plan, totals)
        embeddings.write_shard(output, plan, i, rows)
      progress.show(count)
  for line in totals.lines(args.storage):
    print_line(line)
  lacking = sum(not done(i) for i in range(len(plan.shards)))
  if lacking:
    logging.warning("%d shards are left to other processes", lacking)
  else:
    embeddings.remove_parts(output)
    print_line(f"{output} is complete: --config.data.embeddings={output}")


if __name__ == "__main__":
  program.run(main)
