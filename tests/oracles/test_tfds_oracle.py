"""Real datasets of TFDS, mocked by TFDS and read by us, with TensorFlow."""

import pathlib
import runpy

import numpy as np
import pytest

from imagen_jax.data import images
from imagen_jax.data.prepare.sources import open_source
from imagen_jax.data.source import load_source

FOLDER = pathlib.Path(__file__).parents[1] / "data"
written = runpy.run_path(str(FOLDER / "datasets.py"))
pytestmark = pytest.mark.slow


def mocked(name):
  """Returns the features and examples of a dataset, made up by TFDS."""
  pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
  import tensorflow_datasets as tfds

  with tfds.testing.mock_data(num_examples=3):
    builder = tfds.builder(name)
    dataset = builder.as_dataset(split="train")
    examples = [trimmed(each) for each in tfds.as_numpy(dataset)]
  return builder.info.features, examples


def trimmed(example):
  """Makes the parts of a sequence valid: as long as each other, boxes sorted.

  The mock does neither.
  """
  found = dict(example)
  for key, value in example.items():
    if isinstance(value, dict):
      shortest = min(map(len, value.values()))
      found[key] = {k: list(v)[:shortest] for k, v in value.items()}
      for box in found[key].get("bbox", ()):
        box[:] = np.sort(box.reshape(2, 2), axis=0).ravel()
  return found


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
@pytest.mark.parametrize(
  ("name", "caption"),
  [
    ("coco_captions", "captions/text"),
    ("laion400m/images", "caption"),
    ("food101", "label"),
  ],
)
def test_a_mocked_dataset_is_read(tmp_path, name, caption, kind):
  features, examples = mocked(name)
  import tensorflow as tf
  from tensorflow_datasets.core import example_serializer

  serializer = example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  records = [
    serializer.serialize_example(features.encode_example(example))
    for example in examples
  ]
  folder = written["write_dataset"](tmp_path, records, kind=kind)
  features.save_config(folder)
  if kind == "tfrecord":
    (path,) = folder.glob("*.tfrecord-*")
    with tf.io.TFRecordWriter(str(path)) as file:
      for record in records:
        file.write(record)
    source = open_source(folder, per_part=1, caption=caption)
    found = [
      {"image": r.image, "caption": list(r.captions)} for r in source.read(0)
    ]
  else:
    found = load_source(
      str(folder), "train", "", paths={"caption": caption}
    )  # fmt: skip
  for example, record in zip(examples, found, strict=True):
    expected = example
    for part in caption.split("/"):
      expected = expected[part]
    if caption == "label":
      expected = features["label"].int2str(expected).replace("_", " ").encode()
    expected = [text.decode() for text in np.atleast_1d(expected).tolist()]
    assert np.atleast_1d(record["caption"]).tolist() == expected
    image = images.decode(record["image"])
    # JPEG loses some of the mocked noise.
    assert image.shape == example["image"].shape
