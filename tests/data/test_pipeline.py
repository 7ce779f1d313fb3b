import io
import itertools
import pathlib

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import images, pipeline
from imagen_jax.data.examples import BadRecords
from imagen_jax.text.tokenizer import Tokenizer

LENGTH = 4
VOCABULARY = (
  pathlib.Path(pipeline.__file__).parents[1] / "weights" / "shapes.model"
)


def tokenize(captions):
  """Writes the number in "number 7" into the first token."""
  ids = np.zeros((len(captions), LENGTH), np.int32)
  ids[:, 0] = [int(c.split()[1]) for c in captions]
  return ids, ids > 0


def make_source(n=10, side=32, encode=False):
  rng = np.random.default_rng(0)
  records = []
  for i in range(n):
    image = rng.integers(0, 256, (side, side, 3), np.uint8)
    caption = f"number {i}"
    if encode:
      file = io.BytesIO()
      Image.fromarray(image).save(file, "png")
      image, caption = file.getvalue(), caption.encode()
    records.append({"image": image, "caption": caption})
  return records


def take(n, source=None, **options):
  defaults = dict(size=16, tokenize=tokenize, global_batch=8, seed=3)
  batches = pipeline.make_batches(
    source or make_source(), **(defaults | options)
  )
  return list(itertools.islice(batches, n))


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for key in x:
      np.testing.assert_array_equal(x[key], y[key], err_msg=key)


CROPS = dict(size=32, lowres_size=8, crop=16)


def test_shapes_types_and_ranges():
  (batch,) = take(1, **CROPS)
  shapes = {k: (v.shape, v.dtype) for k, v in batch.items()}
  assert shapes == {
    "image": ((8, 16, 16, 3), np.float32),
    "lowres": ((8, 4, 4, 3), np.float32),
    "tokens": ((8, LENGTH), np.int32),
    "mask": ((8, LENGTH), bool),
  }
  assert -1 <= batch["image"].min() < -0.9 < 0.9 < batch["image"].max() <= 1
  (base,) = take(1)
  assert base["image"].shape == (8, 16, 16, 3) and "lowres" not in base


@pytest.mark.parametrize(
  "rows", [range(4), range(6, 8), np.array([0, 1, 4, 5]), [7]]
)
@pytest.mark.parametrize("options", [{}, CROPS], ids=["whole", "crops"])
def test_a_host_has_its_rows_of_one_global_batch(rows, options):
  whole = [
    {k: v[list(rows)] for k, v in batch.items()} for batch in take(4, **options)
  ]
  assert_same(take(4, rows=rows, **options), whole)


@pytest.mark.parametrize("options", [{}, CROPS], ids=["whole", "crops"])
def test_resuming_gives_the_same_batches(options):
  assert_same(take(3, start_step=4, **options), take(7, **options)[4:])


def test_cache_changes_nothing():
  # Five passes over the source, so that the cache is in use.
  assert_same(take(7, **CROPS, cache=True), take(7, **CROPS))
  assert_same(take(7, cache=True), take(7))


def test_encoded_and_plain_records_are_the_same():
  assert_same(take(2, make_source(encode=True)), take(2, make_source()))


def test_seeds_differ():
  a, b = take(1, **CROPS), take(1, **CROPS, seed=4)
  assert (a[0]["tokens"] != b[0]["tokens"]).any()


def test_every_epoch_has_every_record_in_a_new_order():
  order = np.concatenate([b["tokens"][:, 0] for b in take(10)])
  epochs = order.reshape(8, 10)
  assert (np.sort(epochs, 1) == np.arange(10)).all()
  assert len({tuple(e) for e in epochs}) == 8


def test_pictures_and_captions_stay_together():
  source = make_source()
  for batch in take(3, source, size=32):
    for image, tokens in zip(batch["image"], batch["tokens"], strict=True):
      expected = images.to_float(source[tokens[0]]["image"])
      np.testing.assert_array_equal(image, expected)


def test_lowres_is_the_crop_shrunk():
  source = make_source(2)
  corners = set()
  for batch in take(4, source, **CROPS):
    for image, lowres, tokens in zip(
      batch["image"], batch["lowres"], batch["tokens"], strict=True
    ):
      np.testing.assert_array_equal(lowres, images.resize(image, 4))
      full = images.to_float(source[tokens[0]]["image"])
      windows = np.lib.stride_tricks.sliding_window_view(full, (16, 16), (0, 1))
      same = (windows == image.transpose(2, 0, 1)).all((2, 3, 4))
      (corner,) = np.argwhere(same)
      corners.add(tuple(corner))
  assert len(corners) > 20  # random positions, new ones every epoch


def test_pictures_are_cut_square_and_resized():
  image = np.zeros((64, 96, 3), np.uint8)
  image[:, 16:80] = 200
  source = [{"image": image, "caption": "number 0"}]
  (batch,) = take(1, source, global_batch=1)
  np.testing.assert_array_equal(
    batch["image"], images.to_float(np.full((1, 16, 16, 3), 200, np.uint8))
  )


@pytest.mark.parametrize(
  ("caption", "text"),
  [
    (b"number 2", "number 2"),
    ("caf\u00e9".encode(), "caf\u00e9"),
    (np.bytes_(b"red"), "red"),
    (" a fox\n", " a fox\n"),
    ("\U0001f98a", "\U0001f98a"),
  ],
)
def test_captions_that_are_text(caption, text):
  seen = []

  def note(captions):
    seen.extend(captions)
    return np.zeros((1, 1), np.int32), np.ones((1, 1), bool)

  source = [{"image": np.zeros((8, 8), np.uint8), "caption": caption}]
  take(1, source, tokenize=note, global_batch=1)
  assert set(seen) == {text}


def make_lists(n=10, each=4):
  """Records of some captions each, of which one is blank."""
  return [
    record
    | {"caption": [f"number {each * i + k}" for k in range(each)] + [b" "]}
    for i, record in enumerate(make_source(n))
  ]


def captions_of(batches):
  return np.stack([batch["tokens"][:, 0] for batch in batches])


def test_of_a_list_each_epoch_has_one_caption_by_the_seed():
  found = captions_of(take(10, make_lists())).reshape(8, 10)
  assert (np.sort(found // 4, 1) == np.arange(10)).all()  # one for a record
  by_record = np.take_along_axis(found, np.argsort(found // 4, 1), 1) % 4
  assert all(len(set(chosen)) > 1 for chosen in by_record.T)
  assert set(by_record.ravel()) == {0, 1, 2, 3}
  other = captions_of(take(10, make_lists(), seed=4))
  assert (other.ravel() != found.ravel()).any()


@pytest.mark.parametrize("cache", [False, True])
def test_hosts_and_resumed_runs_take_the_same_captions(cache):
  whole = captions_of(take(7, make_lists(), cache=cache))
  late = captions_of(take(3, make_lists(), start_step=4))
  np.testing.assert_array_equal(late, whole[4:])
  for rows in (range(4), [6, 7]):
    part = captions_of(take(7, make_lists(), rows=rows, cache=cache))
    np.testing.assert_array_equal(part, whole[:, list(rows)])


def test_a_list_of_one_caption_is_that_caption():
  source = make_source()
  lists = [r | {"caption": [r["caption"]]} for r in source]
  assert_same(take(3, lists, **CROPS), take(3, source, **CROPS))


@pytest.mark.parametrize(
  ("caption", "reason"),
  [
    ("\u200b\u200b", "prompt 0 is empty"),  # of no width
    ("half an emoji \ud83d", "prompt 0 is not valid Unicode text"),
  ],
)
def test_captions_that_the_vocabulary_refuses(caption, reason):
  source, bad = make_source(4), BadRecords(max_share=1)
  source[2]["caption"] = caption
  (batch,) = take(1, source, tokenize=Tokenizer(VOCABULARY, 16), bad=bad)
  assert batch["mask"].any(1).all()
  assert bad.reasons[0] == f"record 2: {reason}"


def test_small_and_grey_pictures_are_converted():
  file = io.BytesIO()
  Image.new("L", (8, 9), 200).save(file, "png")
  source = [{"image": file.getvalue(), "caption": "number 0"}]
  (batch,) = take(1, source, global_batch=1)
  expected = images.to_float(np.full((1, 16, 16, 3), 200, np.uint8))
  np.testing.assert_array_equal(batch["image"], expected)


@pytest.mark.parametrize("caption", ["", " \n", b""])
def test_an_empty_caption_is_named(caption):
  source = make_source()
  source[7]["caption"] = caption
  with pytest.raises(ValueError, match="record 7: caption is empty"):
    take(2, source)


def test_a_broken_picture_is_named():
  source = make_source(encode=True)
  source[7]["image"] = source[7]["image"][:100]
  with pytest.raises(ValueError, match="record 7: image bytes cannot be"):
    take(2, source)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(global_batch=0), "global_batch is 0, expected at least 1"),
    (dict(rows=[7, 8]), r"rows are \[8\], expected some in 0\.\.7"),
    (dict(rows=[]), r"rows are \[\], expected some in 0\.\.7"),
    (dict(crop=17), "crop is 17, expected 1 to 16, the size"),
    (dict(crop=0), "crop is 0, expected 1 to 16, the size"),
    (dict(lowres_size=5), "lowres_size is 5, expected a divisor of 16"),
    (dict(lowres_size=4, crop=6), "crop is 6, expected a multiple of 4"),
  ],
)
def test_settings_that_cannot_be(options, message):
  with pytest.raises(ValueError, match=message):
    take(1, **options)


def test_an_empty_source_is_refused():
  with pytest.raises(ValueError, match="source has no records"):
    pipeline.make_batches(
      [], size=16, tokenize=tokenize, global_batch=8, seed=3
    )


def test_without_a_tokenizer_captions_are_not_read():
  """Of unconditional nets: there need not be any."""
  source = make_source()
  expected = take(2, source)
  images_alone = [{"image": record["image"]} for record in source]
  for batch, whole in zip(
    take(2, images_alone, tokenize=None), expected, strict=True
  ):
    assert batch.keys() == {"image"}
    np.testing.assert_array_equal(batch["image"], whole["image"])
