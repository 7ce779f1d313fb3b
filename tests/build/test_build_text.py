"""build: config.text, its defaults and what it gives to its parts."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from imagen_jax import build
from imagen_jax.configs import shapes16
from imagen_jax.text.encoder import Embedder


@pytest.fixture
def config():
  return ConfigDict(shapes16.get_config().text.to_dict(), type_safe=False)


def test_the_defaults_are_the_papers(config):
  text = build.text(config)
  assert not text.attend_padding and text.null == "zeros" and not text.lowercase
  encoder = build.text_encoder(text, build.load_text(text))
  words = encoder(["a red star"])
  assert words.null is None and 0 < words.mask.sum() < words.mask.size


def test_settings_reach_their_parts(config):
  """Those of DeepFloyd IF."""
  config.update(length=77, attend_padding=True, null="empty", lowercase=True)
  text = build.text(config)
  assert text.embedder == Embedder(text.encoder, True, "empty")
  words = build.text_encoder(text, build.load_text(text))(["A red star "])
  assert words.mask.all() and words.mask.shape == (1, 77)
  np.testing.assert_array_equal(
    words.null.tokens[0, 1], words.null.tokens[0, 2]
  )
  assert build.tokenizer(text).lowercase


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    (
      "null",
      "none",
      "config text: null is 'none', expected 'zeros' or 'empty'",
    ),
    ("null", 0, "config text.null is 0, expected str"),
    ("attend_padding", 1, "config text.attend_padding is 1, expected bool"),
    ("lowercase", "yes", "config text.lowercase is 'yes', expected bool"),
  ],
)
def test_bad_values_are_named(config, key, value, said):
  config[key] = value
  with pytest.raises(ValueError) as caught:
    build.text(config)
  assert str(caught.value) == said
