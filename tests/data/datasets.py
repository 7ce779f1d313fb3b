"""Datasets as TFDS stores them, written without it."""

import io
import json

import numpy as np
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

TFDS = "tensorflow_datasets.core.features."
IMAGE = {
  "pythonClassName": TFDS + "image_feature.Image",
  "image": {
    "dtype": "uint8",
    "shape": {"dimensions": ["-1", "-1", "3"]},
  },
}
TEXT = {"pythonClassName": TFDS + "text_feature.Text", "text": {}}


def nested(child):
  return {
    "pythonClassName": TFDS + "sequence_feature.Sequence",
    "sequence": {"feature": child, "length": "-1"},
  }


TEXTS = nested(TEXT)


def png(value=200, side=16, **options):
  file = io.BytesIO()
  Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(
    file, "png", **options
  )
  return file.getvalue()


def serialize(record):
  """Returns a record as bytes; what is bytes already stays as it is."""
  if isinstance(record, bytes):
    return record
  example = tf_example_pb2.Example()
  for name, values in record.items():
    values = values if isinstance(values, list) else [values]
    feature = example.features.feature[name]
    if all(isinstance(value, int) for value in values):
      feature.int64_list.value.extend(values)
    else:
      feature.bytes_list.value.extend(values)
  return example.SerializeToString()


def some_records(count):
  return [
    {"image": png(i), "caption": f"number {i}".encode()} for i in range(count)
  ]


def write_dataset(
  data_dir, records, features=(), *, name="my_set", shards=1, info=(),
  kind="array_record", **split,
):  # fmt: skip
  """Writes DATA_DIR/NAME/1.0.0 with the split train, and returns the folder.

  features, info and split replace values of features.json, dataset_info.json
  and the entry of the split.
  """
  folder = data_dir / name / "1.0.0"
  folder.mkdir(parents=True)
  features = {"image": IMAGE, "caption": TEXT} | dict(features)
  (folder / "features.json").write_text(
    json.dumps(
      {
        "pythonClassName": TFDS + "features_dict.FeaturesDict",
        "featuresDict": {"features": features},
      }
    )
  )
  parts = np.array_split(np.arange(len(records)), shards)
  for shard, part in enumerate(parts):
    path = folder / f"{name}-train.{kind}-{shard:05}-of-{shards:05}"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for i in part:
      writer.write(serialize(records[i]))
    writer.close()
  train = {
    "name": "train",
    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    "numBytes": "1",
    "shardLengths": [str(len(part)) for part in parts],
  }
  described = {
    "name": name,
    "version": "1.0.0",
    "fileFormat": kind,
    "splits": [train | split],
  }
  (folder / "dataset_info.json").write_text(json.dumps(described | dict(info)))
  return folder
