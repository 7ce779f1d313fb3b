"""Files of images by the letter of their formats, and parts of them."""

import io
import zlib

import numpy as np
from PIL import Image

from imagen_jax.data import encoded

NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
PHOTO = np.asarray(
  Image.fromarray(NOISE).resize((64, 48), Image.Resampling.BICUBIC)
)


def encode(kind, picture=None, **options):
  file = io.BytesIO()
  picture = Image.fromarray(PHOTO) if picture is None else picture
  picture.save(file, kind, **options)
  return file.getvalue()


def chunk(name, content, check=None):
  check = zlib.crc32(name + content).to_bytes(4) if check is None else check
  return len(content).to_bytes(4) + name + content + check


def riff(*chunks):
  body = b"WEBP" + b"".join(
    name
    + len(content).to_bytes(4, "little")
    + content
    + b"\0" * (len(content) % 2)
    for name, content in chunks
  )
  return b"RIFF" + len(body).to_bytes(4, "little") + body


def sizes(*numbers):
  return b"".join(n.to_bytes(3, "little") for n in numbers)


def pixels_of(webp):
  """The chunks of a WebP after the one of its features."""
  return [c for c in encoded._webp_chunks(webp[12:]) if c[0] != b"VP8X"]
