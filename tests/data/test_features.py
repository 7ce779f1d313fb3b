"""Datasets of TFDS with other features than image and caption, by paths."""

import pathlib
import runpy

import pytest

from imagen_jax.data import source

written = runpy.run_path(str(pathlib.Path(__file__).with_name("datasets.py")))
IMAGE, TEXT, TEXTS, TFDS = map(written.get, ("IMAGE", "TEXT", "TEXTS", "TFDS"))
png, nested = written["png"], written["nested"]
CLASSES = ("apple_pie", "waffle")


def group(**features):
  return {
    "pythonClassName": TFDS + "features_dict.FeaturesDict",
    "featuresDict": {"features": features},
  }


def scalar(dtype):
  return {
    "pythonClassName": TFDS + "scalar.Scalar",
    "tensor": {"dtype": dtype, "encoding": "none", "shape": {}},
  }


def label(count=2):
  return {
    "pythonClassName": TFDS + "class_label_feature.ClassLabel",
    "classLabel": {"numClasses": str(count)},
  }


@pytest.fixture
def load(tmp_path):
  """Writes one record under some features, and reads it by paths."""

  def load(features, record, classes=(), **options):
    folder = written["write_dataset"](tmp_path, [record], features)
    # write_dataset has image and caption; here only the given features are.
    text = (folder / "features.json").read_text()
    kept = written["json"].loads(text)
    kept["featuresDict"]["features"] = features
    (folder / "features.json").write_text(written["json"].dumps(kept))
    for name in classes:
      path = folder / f"{name}.labels.txt"
      path.write_text("".join(f"{each}\n" for each in CLASSES))
    return source.load_source("my_set", "train", tmp_path, **options)[0]

  return load


# As TFDS's coco_captions and laion400m have them.
COCO = {
  "image": IMAGE,
  "image/filename": TEXT,
  "captions": nested(group(id=scalar("int64"), text=TEXT)),
  "objects": nested(group(label=label(), is_crowd=scalar("bool"))),
}
COCO_RECORD = {
  "image": png(),
  "image/filename": b"1.png",
  "captions/id": [1, 2],
  "captions/text": [b"a dish", "a wåffle".encode()],
  "objects/label": [1, 0],
  "objects/is_crowd": [0, 0],
}
LAION = {
  "image": IMAGE,
  "caption": TEXT,
  "url": TEXT,
  "similarity": scalar("float64"),
  "nsfw": label(),
}
LAION_RECORD = {
  "image": png(), "caption": b"a dish", "url": b"http://a", "nsfw": 0,
}  # fmt: skip


@pytest.mark.parametrize(
  ("features", "record", "classes", "paths", "template", "caption"),
  [
    (COCO, COCO_RECORD, (), "captions/text", "{}", ["a dish", "a wåffle"]),
    (COCO, COCO_RECORD, (), "captions/text", "{}!", ["a dish!", "a wåffle!"]),
    (COCO, COCO_RECORD, (), "image/filename", "{}", "1.png"),
    (
      COCO, COCO_RECORD, ("objects-label",), "objects/label", "a {}",
      ["a waffle", "a apple pie"],
    ),
    (LAION, LAION_RECORD, (), "caption", "{}", "a dish"),
    (LAION, LAION_RECORD, ("nsfw",), "nsfw", "a photo of {}",
     "a photo of apple pie"),
    (LAION, LAION_RECORD, (), "nsfw", "class {}", "class 0"),
  ],
)  # fmt: skip
def test_a_caption_by_its_path(
  load, features, record, classes, paths, template, caption
):
  found = load(
    features, record, classes, paths={"caption": paths}, template=template
  )
  assert found == {"image": png(), "caption": caption}


def test_an_image_within_another_feature(load):
  features = {"pair": group(image=IMAGE, text=TEXT, other=TEXT)}
  record = {"pair/image": png(), "pair/text": b"a dish", "pair/other": b"\xff"}
  paths = {"image": "pair/image", "caption": "pair/text"}
  assert load(features, record, paths=paths) == {
    "image": png(), "caption": "a dish",
  }  # fmt: skip


@pytest.mark.parametrize(
  ("path", "said"),
  [
    (
      "captions/txt",
      "dataset 'my_set' has no feature 'captions/txt', only captions/id,"
      " captions/text, image, image/filename, objects/is_crowd, objects/label",
    ),
    ("caption", "dataset 'my_set' has no feature 'caption', only captions/id,"),
    (
      "captions/id",
      "feature 'captions/id' of dataset 'my_set' is Scalar of int64 (None,),"
      " expected text, or a list of texts",
    ),
    ("captions", "feature 'captions' of dataset 'my_set' is Sequence, expecte"),
    (
      "objects/label",  # of classes that have no names
      "feature 'objects/label' of dataset 'my_set' is ClassLabel of int64"
      " (None,), expected text, or a list of texts, or classes with names or",
    ),
  ],
)
def test_a_path_that_cannot_be_read(load, path, said):
  with pytest.raises(ValueError) as caught:
    load(COCO, COCO_RECORD, paths={"caption": path})
  assert str(caught.value).startswith(said)


def test_an_image_in_a_list_is_refused(load):
  features = {"pairs": nested(group(image=IMAGE)), "caption": TEXT}
  record = {"pairs/image": [png()], "caption": b"a"}
  with pytest.raises(ValueError, match="'pairs/image' .* is Image of uint8"):
    load(features, record, paths={"image": "pairs/image"})


@pytest.mark.parametrize("number", [-1, 2])
def test_a_label_without_a_class_is_a_bad_record(load, number):
  """As TFDS has -1 where a test set is not labelled."""
  with pytest.raises(ValueError, match=f"label {number}, expected 0 to 1"):
    load(
      LAION, LAION_RECORD | {"nsfw": number}, ("nsfw",),
      paths={"caption": "nsfw"},
    )  # fmt: skip


def test_a_blank_caption_stays_blank_in_a_template(load):
  record = LAION_RECORD | {"caption": b" "}
  assert load(LAION, record, template="a photo of {}")["caption"] == " "
