"""What may be asked, and the sentences for what may not."""

import flax.linen as nn
import numpy as np
import pytest
from PIL import Image

from imagen_jax.cascade import Cascade
from imagen_jax.request import Row, image_rows, make_request
from imagen_jax.stage import Sampling, Stage
from imagen_jax.types import TextEmbedding


class Net(nn.Module):
  """Stands for a net, which a request does not run."""

  stride: int = 1
  out_channels: int = 3


CASCADE = Cascade(
  ("base", "sr"),
  (Stage(Net(), 4), Stage(Net(), 8, lowres_size=4)),
  (Sampling(steps=3), Sampling(steps=2)),
)
ONE = [Row(0, 0, 0)]


def ask(prompts=("a star",), rows=ONE, **options):
  return make_request(CASCADE, prompts, rows, **{"batch_size": 2} | options)


def test_rows_are_prompt_by_prompt():
  rows = image_rows(2, num_images=2, seed=5)
  assert rows == [Row(0, 5, 0), Row(0, 5, 1), Row(1, 5, 0), Row(1, 5, 1)]
  assert image_rows(1, seed=[3, 4]) == [Row(0, 3, 0), Row(0, 4, 0)]
  assert image_rows(1, seed=3, index=7) == [Row(0, 3, 7)]
  assert image_rows(1, seed=np.uint32(3), index=[7, 9])[1] == Row(0, 3, 9)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"num_images": 0}, "num_images is 0, expected at least 1"),
    ({"seed": -1}, "seed is -1, expected 0 to 2\\*\\*32 - 1"),
    ({"seed": [0, 2**32]}, "seed is 4294967296, expected 0 to"),
    ({"seed": []}, "there are no images to make"),
    ({"seed": [1, 2], "index": 0}, "seed is a list, .* neither index nor"),
    ({"seed": [1, 2], "num_images": 3}, "seed is a list, which has one image"),
    ({"index": -1}, "index is -1, expected 0 to"),
    ({"index": 0, "num_images": 2}, "num_images is 2 beside index, expected"),
  ],
)
def test_rows_that_cannot_be(options, message):
  with pytest.raises(ValueError, match=message):
    image_rows(1, **options)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"prompts": []}, "there are no prompts"),
    ({"prompts": ["a star", " "]}, "prompt 1 is empty"),
    ({"prompts": ["a star", 3]}, "prompt 1 is int, expected a string"),
    ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
    ({"callback_every": 0}, "callback_every is 0, expected at least 1"),
    ({"guidance": "5"}, "guidance is '5', expected a number"),
    ({"guidance": float("nan")}, "guidance is nan, expected a number"),
    ({"guidance": [1.0]}, "guidance has 1 values, expected 2, one each for ba"),
    ({"guidance": {"x": 1.0}}, "guidance names 'x', expected one of base, sr"),
    ({"steps": 2.5}, "steps is 2.5, expected a whole number"),
    ({"steps": 0}, "stage base: steps is 0, expected at least 1"),
    ({"steps": {"sr": -1}}, "stage sr: steps is -1, expected at least 1"),
    ({"stages": "sr"}, "stages is 'sr', expected \\(first, last\\)"),
    ({"stages": ("sr", "x")}, "stages names 'x', expected one of base, sr"),
    ({"stages": ("sr", "base")}, "stages is .*, but sr comes after base"),
    ({"stages": ("sr", None)}, "stage sr upsamples, expected image"),
    ({"image": "a.png"}, "image is given, but stage base makes images from t"),
    ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 values, expected"),
    ({"negative_prompt": " "}, "prompt 0 is empty"),
    (
      {"text": TextEmbedding(np.zeros((2, 3, 4)), np.ones((2, 3), bool))},
      "text has 2 row\\(s\\), expected 1, one per prompt",
    ),
  ],
)
def test_what_cannot_be_asked(options, message):
  with pytest.raises(ValueError, match=message):
    ask(**options)


def lowres(image):
  return ask(image=image, stages=("sr", None)).lowres[0]


def test_an_image_of_ones_own_is_cropped_and_resized(tmp_path):
  """A path, PIL image, uint8 and float array give the same low-res image."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
  path = tmp_path / "own.png"
  Image.fromarray(pixels).save(path)
  expected = lowres(pixels)
  assert expected.shape == (4, 4, 3) and expected.dtype == np.float32
  # Antialiased: a mean over 8x8 pixels of noise is near their mean.
  assert np.abs(expected).max() < 0.5
  middle = pixels[:, 8:40]
  for same in (
    path, str(path), Image.fromarray(pixels), middle,
    pixels / np.float32(127.5) - 1,
  ):  # fmt: skip
    np.testing.assert_allclose(lowres(same), expected, atol=1e-5)
  small = rng.uniform(-1, 1, (4, 4, 3)).astype(np.float32)
  np.testing.assert_array_equal(lowres(small), small)


def test_transparency_lies_on_white():
  clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
  np.testing.assert_allclose(lowres(clear), 1.0)


@pytest.mark.parametrize(
  ("image", "message"),
  [
    ("missing.png", "image missing.png cannot be read: No such file"),
    (__file__, "image .*test_request.py: image bytes cannot be decoded"),
    (np.full((4, 4, 3), 2.0), "image is float64 .*, expected .* in \\[-1, 1"),
    (np.zeros((4, 4)), "image is float64 .*, expected \\[H, W, 3\\]"),
    (
      np.zeros((4, 4, 2), np.uint8),
      "image is uint8 .*, expected uint8 \\[H, W\\]",
    ),
  ],
)
def test_images_that_cannot_be_upsampled(image, message):
  with pytest.raises(ValueError, match=message):
    lowres(image)
