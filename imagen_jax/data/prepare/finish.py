"""The end of a preparation: duplicates, metadata of TFDS, and the report."""

import collections
import json

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from imagen_jax import files
from imagen_jax.data import images, png
from imagen_jax.data.prepare.shards import (
  NAME,
  Plan,
  read_sidecar,
  shard_path,
  sidecar_path,
  writer,
)  # fmt: skip

_PREVIEW, _COLUMNS, _SIDE = 36, 6, 128  # images, columns, pixels


def finish(plan: Plan, output: epath.Path) -> list[str]:
  """Drops duplicates, and writes the metadata and the report.

  Of equal records the first one of the source stays. Whatever was finished
  before stays as it is.

  Args:
    plan: the shards.
    output: the folder of the shards.

  Returns:
    The summary, in lines.

  Raises:
    ValueError: a shard is missing or damaged, or no record is left.
  """
  missing = [
    i for i in range(plan.count) if not sidecar_path(output, i).exists()
  ]
  if missing:
    raise ValueError(
      f"{len(missing):,} of {plan.count:,} shards are missing in {output}, the"
      f" first is {missing[0]}: write them before --finish"
    )
  counts = {split: [] for split in plan.splits}  # records of each shard
  sizes, kinds, report = collections.Counter(), collections.Counter(), []
  first: dict[str, str] = {}  # digest -> key
  for i in range(plan.count):
    listed = read_sidecar(output, i)
    report += [tuple(row) for row in listed["dropped"]]
    wanted = {split: [] for split in plan.splits}
    for key, split, digest, size in listed["kept"]:
      fresh = plan.duplicates or digest not in first
      wanted[split].append(fresh)
      if fresh:
        first.setdefault(digest, key)
        sizes[split] += size
      else:
        reason = f"the same image and caption as {first[digest]}"
        report.append((key, "duplicate", reason))
    for split, fresh in wanted.items():
      path = shard_path(output, plan, split, i)
      _drop_duplicates(path, fresh, listed["files"][split])
      counts[split].append(sum(fresh))
  kinds.update(kind for _, kind, _ in report)
  totals = {split: sum(each) for split, each in counts.items()}
  lines = [
    json.dumps({"key": key, "kind": kind, "reason": reason})
    for key, kind, reason in report
  ]
  files.write(output / "report.jsonl", "".join(f"{line}\n" for line in lines))
  if not totals["train"]:
    said = ", ".join(f"{kind}: {n:,}" for kind, n in kinds.most_common())
    raise ValueError(
      f"no record is left for the split train ({said}), see"
      f" {output / 'report.jsonl'}"
    )
  _write_preview(plan, output, counts["train"])
  files.write(
    output / "features.json", json.dumps(_features().to_json(), sort_keys=True)
  )
  files.write(
    output / "dataset_info.json", json.dumps(_info(counts, sizes), indent=2)
  )
  summary = _summary(totals, kinds)
  files.write(output / "report.txt", "".join(f"{line}\n" for line in summary))
  return summary


def _features() -> tfds.features.FeaturesDict:
  """Returns the features of the records."""
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "caption": tfds.features.Sequence(tfds.features.Text()),
      "key": tfds.features.Text(),
    }
  )


def _info(
  counts: dict[str, list[int]], sizes: collections.Counter
) -> dict[str, object]:
  """Returns the content of dataset_info.json."""
  return {
    "name": NAME,
    "version": "1.0.0",
    "description": "Images with captions, prepared by imagen_jax.prepare.",
    "moduleName": "tensorflow_datasets.core.dataset_builders.adhoc_builder",
    "fileFormat": "array_record",
    "disableShuffling": True,
    "splits": [
      {
        "name": split,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": str(sizes[split]),
        "shardLengths": [str(n) for n in lengths],
      }
      for split, lengths in counts.items()
      if sum(lengths)
    ],
  }


def _drop_duplicates(path: epath.Path, fresh: list[bool], length: int) -> None:
  """Rewrites a shard without its duplicates, unless that is done.

  Args:
    path: the shard.
    fresh: false for each record that is a duplicate.
    length: the bytes of the file as it was first written.

  Raises:
    ValueError: the shard is missing or damaged.
  """
  if all(fresh):
    found = path.stat().length if path.exists() else 0
    if found != length:
      raise ValueError(_damaged(path, f"{found:,} bytes, not {length:,}"))
    return
  records = _read(path)
  if len(records) == len(fresh):
    records = [record for record, new in zip(records, fresh) if new]
    with writer(path) as write:
      for record in records:
        write(record)
  if len(records) != sum(fresh):
    raise ValueError(_damaged(path, f"{len(records):,} records"))


def _damaged(path: epath.Path, found: str) -> str:
  """Explains what to do about a damaged shard."""
  return (
    f"shard {path} is damaged ({found}), expected it whole: remove its list in"
    " the folder shards, and it is written again"
  )


def _read(path: epath.Path) -> list[bytes]:
  """Reads all records of a shard; ValueError if it is missing or damaged."""
  try:
    with files.local_copy(path) as local:
      reader = array_record_module.ArrayRecordReader(local)
      try:
        return reader.read_all() if reader.num_records() else []
      finally:
        reader.close()
  except (OSError, RuntimeError) as error:
    raise ValueError(_damaged(path, files.reason(error))) from error


def _write_preview(plan: Plan, output: epath.Path, counts: list[int]) -> None:
  """Writes preview.png: images at equal distances in the train split."""
  ends, total = np.cumsum(counts), sum(counts)
  chosen = sorted({i * total // _PREVIEW for i in range(_PREVIEW)})
  tiles = []
  for shard in dict.fromkeys(np.searchsorted(ends, chosen, "right").tolist()):
    records = _read(shard_path(output, plan, "train", shard))
    begin = int(ends[shard]) - counts[shard]
    for i in chosen:
      if begin <= i < ends[shard]:
        tiles.append(_tile(records[i - begin]))
  sheet = png.grid(tiles, min(_COLUMNS, len(tiles)))
  png.write_png(output / "preview.png", sheet)


def _tile(data: bytes) -> np.ndarray:
  """Draws a record's image above its first caption."""
  feature = tf_example_pb2.Example.FromString(data).features.feature
  image = images.decode(feature["image"].bytes_list.value[0], _SIDE)
  image = images.resize_bytes(images.central_square(image), _SIDE)
  caption = feature["caption"].bytes_list.value[0].decode()[:200]
  return png.captioned(image, caption)


def _summary(totals: dict[str, int], kinds: collections.Counter) -> list[str]:
  """Returns a table of how many records were kept and dropped."""
  rows = [*totals.items(), *(("dropped: " + k, n) for k, n in kinds.items())]
  rows[len(totals) :] = sorted(rows[len(totals) :], key=lambda row: -row[1])
  width = max(len(name) for name, _ in rows)
  return [f"{name:{width}}  {count:,}" for name, count in rows]
