"""HEIC and AVIF: read where Pillow and pillow_heif can, or named."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, features

from imagen_jax.data import images


def header(*brands):
  box = brands[0] + bytes(4) + b"".join(brands[1:])
  return (8 + len(box)).to_bytes(4, "big") + b"ftyp" + box + bytes(100)


@pytest.mark.parametrize("brands", [(b"heic",), (b"mif1", b"mif1", b"heic")])
def test_heic_names_the_package_that_reads_it(monkeypatch, brands):
  monkeypatch.setitem(sys.modules, "pillow_heif", None)
  with pytest.raises(ValueError) as caught:
    images.decode(header(*brands))
  assert str(caught.value) == (
    "image bytes cannot be decoded (HEIC, which needs the package pillow_heif)"
  )


def test_avif_needs_a_pillow_that_has_it(monkeypatch):
  check = lambda name: name != "avif"
  monkeypatch.setattr(features, "check", check)
  with pytest.raises(ValueError, match="AVIF, which needs a Pillow that was b"):
    images.decode(header(b"mif1", b"avif"))


@pytest.mark.parametrize(
  "data", [header(b"isom", b"mp41"), header(b"heic")[:9]]
)
def test_a_film_or_a_cut_header_is_of_no_known_format(data):
  with pytest.raises(ValueError, match="of no known format"):
    images.decode(data)


def test_heic_is_decoded_upright_and_its_size_is_checked_first():
  pillow_heif = pytest.importorskip("pillow_heif")
  image = np.full((32, 48, 3), 60, np.uint8)
  image[:16] = 200
  file, exif = io.BytesIO(), Image.Exif()
  exif[0x0112] = 3  # upside down
  pillow_heif.from_pillow(Image.fromarray(image)).save(
    file, quality=-1, exif=exif.tobytes()
  )
  found = images.decode(file.getvalue())
  assert found.shape == image.shape
  np.testing.assert_allclose(found[::-1], image, atol=4)
  with pytest.raises(ValueError, match="48 x 32 pixels, expected at most"):
    images.decode(file.getvalue(), max_pixels=1000)
