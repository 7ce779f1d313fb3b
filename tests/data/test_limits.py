"""Images that are small in a file and large in memory are not decoded."""

import pathlib
import runpy
import struct

import numpy as np
import pytest
from PIL import Image, ImageFile

from imagen_jax.data import images

formats = runpy.run_path(str(pathlib.Path(__file__).with_name("formats.py")))
encode, chunk = formats["encode"], formats["chunk"]
riff, sizes, pixels_of = map(formats.get, ("riff", "sizes", "pixels_of"))


def animated_webp(side, canvas, place=0):
  """Frames of one colour on a canvas, and further ones that are too large."""
  webp = encode("webp", Image.new("RGB", (side, side), "red"), lossless=True)
  frame = lambda side: (
    sizes(place // 2, place // 2, side - 1, side - 1, 100)
    + b"\0" + riff(*pixels_of(webp))[12:]
  )  # fmt: skip
  features = b"\2\0\0\0" + sizes(canvas - 1, canvas - 1)
  frames = [(b"ANMF", frame(side)), (b"ANMF", frame(2**14))]
  return riff((b"VP8X", features), (b"ANIM", bytes(6)), *frames)


def test_of_an_animation_only_the_first_frame_is_decoded():
  image = images.decode(animated_webp(8, 20, place=4))
  expected = np.full((20, 20, 3), 255, np.uint8)
  expected[4:12, 4:12] = (255, 0, 0)
  np.testing.assert_array_equal(image, expected)


def gif(side):
  data = bytearray(encode("gif", Image.new("P", (1, 1))))
  data[6:10] = struct.pack("<HH", side, side)
  return bytes(data)


PNG = encode("png")


def png(side):
  header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
  return PNG[:8] + chunk(b"IHDR", header) + PNG[33:]


@pytest.mark.parametrize(
  "bomb",
  [
    lambda side: animated_webp(8, side),
    lambda side: animated_webp(side, 8),
    lambda side: encode("webp", Image.new("RGB", (side, side))),
    gif,
    png,
    lambda side: encode("tiff", Image.new("1", (side, side))),
    lambda side: encode("jpeg", Image.new("L", (side, side))),
    lambda side: encode("bmp", Image.new("1", (side, side))),
    lambda side: encode("jpeg2000", Image.new("L", (side, side))),
  ],
  ids=[
    "webp",
    "frame",
    "lossy",
    "gif",
    "png",
    "tiff",
    "jpeg",
    "bmp",
    "jpeg2000",
  ],
)
def test_more_pixels_than_the_limit_are_not_decoded(bomb, monkeypatch):
  data, never = bomb(101), lambda *_, **__: pytest.fail("it was decoded")
  monkeypatch.setattr(ImageFile.ImageFile, "load", never)
  if data.startswith((b"RIFF", b"GIF", b"\x89PNG")):  # opening may allocate
    monkeypatch.setattr(Image, "open", never)
  with pytest.raises(
    ValueError, match=r"101 x 101 pixels, expected at most max"
  ):
    images.decode(data, max_pixels=100**2)


@pytest.mark.parametrize(
  "make", [lambda: animated_webp(8, 13_000), lambda: gif(13_000)]
)
def test_the_limit_by_default(make):
  with pytest.raises(ValueError, match="13,000 x 13,000 pixels, .*67,108,864"):
    images.decode(make())


def test_a_jpeg_counts_as_it_is_shrunk():
  jpeg = encode("jpeg", Image.new("RGB", (800, 800)))
  assert images.decode(jpeg, 32, max_pixels=10_000).shape == (100, 100, 3)
  # A progressive one is first decoded whole.
  jpeg = encode("jpeg", Image.new("RGB", (800, 800)), progressive=True)
  with pytest.raises(ValueError, match="800 x 800 pixels"):
    images.decode(jpeg, 32, max_pixels=10_000)


def test_scans_of_a_jpeg_are_limited():
  jpeg = encode("jpeg", progressive=True)
  last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
  many = lambda count: jpeg[:-2] + last * count + b"\xff\xd9"
  images.decode(many(20))
  with pytest.raises(ValueError, match="scans, expected at most 64"):
    images.decode(many(100))
  # What follows the end is no scan: a phone puts a film there.
  np.testing.assert_array_equal(
    images.decode(jpeg + b"\xff\xda" * 900), images.decode(jpeg)
  )
