"""A small vocabulary for the tests of this folder."""

import itertools

import pytest

from imagen_jax.text.vocabulary import train_vocabulary


@pytest.fixture(scope="session")
def captions():
  colors = ("red", "green", "blue", "yellow", "purple")
  shapes = ("circles", "squares", "triangles", "stars")
  places = ("above", "below", "left of", "right of")
  return [
    f"two {color} {shape} {place} a {other} square on a {other} background"
    for color, shape, place, other in itertools.product(
      colors, shapes, places, colors
    )
  ]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory, captions):
  path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
  train_vocabulary(captions, path, vocab_size=160)
  return path
