"""Mixtures of sources with weights, and mirrored images."""

import itertools

import numpy as np
import pytest

from imagen_jax import build
from imagen_jax.data import pipeline
from imagen_jax.data.captions import names_side
from imagen_jax.data.examples import BadRecords
from imagen_jax.data.mixture import Ingredient, Mixture
from imagen_jax.training.settings import Data, Part

SIDE = 8


def tokenize(captions):
  """Writes the number in "number 7 ..." into the first token."""
  ids = np.array([[int(c.split()[1])] for c in captions], np.int32)
  return ids, ids >= 0


def records(first, count, caption="number {}"):
  """Images whose left half is darker, with captions numbered from first."""
  image = np.full((SIDE, SIDE, 3), 50, np.uint8)
  image[:, SIDE // 2 :] = 200
  return [
    {"image": image, "caption": caption.format(i)}
    for i in range(first, first + count)
  ]


def mixture(*weights, counts=(7, 5, 11)):
  return Mixture(
    tuple(
      Ingredient(records(100 * i, counts[i]), weight, f"set {i}")
      for i, weight in enumerate(weights)
    )
  )


def take(n, source, **options):
  defaults = dict(size=SIDE, tokenize=tokenize, global_batch=8, seed=3)
  batches = pipeline.make_batches(source, **(defaults | options))
  return list(itertools.islice(batches, n))


def numbers(batches):
  return np.concatenate([batch["tokens"][:, 0] for batch in batches])


@pytest.mark.parametrize(
  "weights", [(460, 400), (0.46, 0.4), (1, 1), (1, 3), (5, 2, 1), (99, 1)]
)
def test_shares_are_those_of_the_weights(weights):
  found = numbers(take(1, mixture(*weights), global_batch=100)) // 100
  shares = np.bincount(found, minlength=len(weights)) / len(found)
  expected = np.array(weights) / sum(weights)
  np.testing.assert_allclose(shares, expected, atol=2 / len(found))


def test_it_is_a_function_of_seed_and_step():
  source, whole = mixture(2, 1), take(9, mixture(2, 1), crop=4)
  again = take(4, source, crop=4, start_step=5)
  rows = take(9, source, crop=4, rows=[1, 6])
  for step, batch in enumerate(whole):
    for key, values in batch.items():
      np.testing.assert_array_equal(rows[step][key], values[[1, 6]])
      if step >= 5:
        np.testing.assert_array_equal(again[step - 5][key], values)
  other = numbers(take(9, source, seed=4))
  assert (other != numbers(whole)).any()


def test_each_source_is_read_in_epochs_of_its_own():
  found = numbers(take(20, mixture(1, 1)))
  for first, count in ((0, 7), (100, 5)):
    own = found[(found >= first) & (found < first + 100)]
    epochs = own[: len(own) // count * count].reshape(-1, count)
    assert (np.sort(epochs, 1) == first + np.arange(count)).all()
    assert len({*map(tuple, epochs)}) > 1
  # The orders of sources of equal length differ.
  a, b = (
    found[found // 100 == i] % 100
    for found in [numbers(take(20, mixture(1, 1, counts=(7, 7))))]
    for i in (0, 1)
  )
  assert (a != b).any()


def test_one_source_is_read_as_without_a_mixture():
  alone, mixed = take(3, records(0, 7)), take(3, mixture(1))
  np.testing.assert_array_equal(numbers(alone), numbers(mixed))


def test_a_bad_record_is_replaced_from_its_source_and_named_with_it():
  source, bad = mixture(1, 1), BadRecords(max_share=1)
  source.ingredients[1].records[2]["caption"] = " "
  found = numbers(take(10, source, bad=bad))
  assert np.bincount(found // 100).tolist() == [40, 40]
  assert 102 not in found
  assert bad.reasons[0] == "record 2 of set 1: caption is empty"


def test_an_empty_source_is_refused():
  with pytest.raises(ValueError, match="^source has no records$"):
    take(1, mixture(1, 1, counts=(3, 0)))


def data(*parts, **options):
  return build.runs.data({"mixture": parts, **options})


def test_parts_have_the_values_of_data_or_their_own():
  found = data(
    dict(name="a", weight=460),
    dict(name="b", weight=400.0, split="val", caption="captions/text"),
    name="unused", split="train[:5]", template="a {}",
  )  # fmt: skip
  rest = dict(image="image", template="a {}")
  assert found.parts == (
    Part("a", 460, split="train[:5]", caption="caption", **rest),
    Part("b", 400.0, split="val", caption="captions/text", **rest),
  )
  assert [part.name for part in Data(name="c").parts] == ["c"]


@pytest.mark.parametrize(
  ("mixture", "said"),
  [
    (("a", "b"), r"config data.mixture\[0\] is 'a', expected keys with values"),
    ("a", "config data.mixture is 'a', expected "),
    ((dict(weight=1),), r"data.mixture\[0\]: name is '', expected the name"),
    ((dict(name="a", weight=0),), r"\[0\]: weight is 0, expected more than 0"),
    ((dict(name="a", weight=-1),), r"\[0\]: weight is -1, expected more than"),
    ((dict(name="a", weight=float("inf")),), "weight is inf, expected more "),
    ((dict(name="a", kind=1),), r"unknown config key data.mixture\[0\].kind"),
    ((dict(name="a", template="a"),), "template is 'a', expected a text with"),
  ],
)
def test_a_bad_mixture_is_one_sentence(mixture, said):
  with pytest.raises(ValueError, match=said):
    build.runs.data({"mixture": mixture})


def test_a_template_needs_a_place_for_the_text():
  with pytest.raises(ValueError, match="config data: template is 'photo', exp"):
    build.runs.data({"template": "photo"})


def is_flipped(images):
  return images[:, 0, 0, 0] > images[:, 0, -1, 0]


@pytest.mark.parametrize("text", [True, False])
def test_half_of_the_images_are_flipped(text):
  tokenizer = tokenize if text else None
  source = records(0, 5)
  options = dict(tokenize=tokenizer, lowres_size=4, flip=True)
  batches = take(25, source, **options)
  found = np.concatenate([is_flipped(b["image"]) for b in batches])
  assert 70 < found.sum() < 130  # of 200, by a fixed seed
  for batch in batches:
    assert "may_flip" not in batch
    np.testing.assert_array_equal(
      is_flipped(batch["image"]),
      is_flipped(batch["lowres"]),
    )
  again = take(5, source, start_step=20, rows=[2, 3], **options)
  for a, b in zip(again, batches[20:]):
    np.testing.assert_array_equal(a["image"], b["image"][2:4])
  plain = take(25, source, tokenize=tokenizer)
  assert not any(is_flipped(b["image"]).any() for b in plain)


def test_a_caption_that_names_a_side_is_left_alone():
  """Of several captions the one that is chosen decides."""
  source = records(0, 5, "number {} turns left")
  assert not any(
    is_flipped(b["image"]).any() for b in take(10, source, flip=True)
  )
  for record in source:
    record["caption"] = ["number 0 turns LEFT", "number 1 turns"]
  (batch,) = take(1, source, flip=True, global_batch=100)
  flipped = is_flipped(batch["image"])
  chosen = batch["tokens"][:, 0] == 1
  assert flipped[chosen].any() and not flipped[~chosen].any()


@pytest.mark.parametrize(
  ("caption", "side"),
  [
    ("a cat left of a dog", True),
    ("Right-hand traffic", True),
    ("the leftmost chair", True),
    ("a bright cleft", False),
    ("upright", False),
    ("", False),
  ],
)
def test_words_that_name_a_side(caption, side):
  assert names_side(caption) is side
