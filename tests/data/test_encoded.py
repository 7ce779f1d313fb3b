"""What stands beside the pixels in a file costs no image."""

import pathlib
import re
import runpy
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import images

# PIL's of damage; programs ignore them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
formats = runpy.run_path(str(pathlib.Path(__file__).with_name("formats.py")))
PHOTO, encode, chunk = map(formats.get, ("PHOTO", "encode", "chunk"))
riff, sizes, pixels_of = map(formats.get, ("riff", "sizes", "pixels_of"))
GARBAGE = {
  "empty": b"",
  "short": b"a",
  "no keyword": b"\0",
  "random": np.random.default_rng(1).bytes(300),
  "huge": bytes(2**21),
  "inflates": b"key\0\0" + zlib.compress(bytes(2**22)),
  "inflates, marked": b"key\0\1\0\0\0" + zlib.compress(bytes(2**21)),
  "not deflated": b"key\0\0" + b"not deflated" * 9,
}


def assert_same(data, expected, what=None):
  np.testing.assert_array_equal(images.decode(data), expected, str(what))


def assert_refused(data):
  with pytest.raises(ValueError, match=r"image bytes cannot be decoded \("):
    images.decode(data)


PNG = encode("png")
HEAD = 33  # bytes of the signature and IHDR
CHUNKS = b"tEXt zTXt iTXt iCCP cHRM gAMA pHYs tIME eXIf sRGB sBIT bKGD hIST "
CHUNKS += b"tRNS sPLT oFFs pCAL sCAL acTL fcTL fdAT caNv cICP mDCv abCd"


@pytest.mark.parametrize("name", CHUNKS.split(), ids=bytes.decode)
def test_a_png_beside_any_other_chunk(name):
  for kind, content in GARBAGE.items():
    for check in (None, b"1234"):
      odd = chunk(name, content, check)
      assert_same(PNG[:HEAD] + odd + PNG[HEAD:], PHOTO, kind)
      assert_same(PNG[:-12] + odd + PNG[-12:], PHOTO, kind)


@pytest.mark.parametrize(
  "name", [b"Raw profile type exif", b"XML:com.adobe.xmp"]
)
@pytest.mark.parametrize(
  "text",
  [b"", b"garbage", b"\nexif\n  12\nzz", b"\nexif\n  4\n0000", b"tiff:Orient"],
)
def test_a_png_beside_texts_that_are_no_exif(name, text):
  for odd in (
    chunk(b"tEXt", name + b"\0" + text),
    chunk(b"zTXt", name + b"\0\0" + zlib.compress(text)),
    chunk(b"iTXt", name + b"\0\0\0\0\0" + text),
    chunk(b"iTXt", name + b"\0\1\0\0\0" + zlib.compress(text)[:-2]),
  ):
    assert_same(PNG[:HEAD] + odd + PNG[HEAD:], PHOTO)


def exif(orientation):
  found = Image.Exif()
  found[0x0112] = orientation
  return found.tobytes()


XMP = b'<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize(
  "odd",
  [
    chunk(b"eXIf", exif(6)[6:]),
    chunk(
      b"zTXt",
      b"Raw profile type exif\0\0"
      + zlib.compress(b"\nexif\n  99\n" + exif(6).hex("\n", 36).encode()),
    ),
    chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
  ],
  ids=["eXIf", "raw profile", "XMP", "compressed XMP"],
)
def test_a_png_comes_upright_wherever_it_says_so(odd):
  expected = np.rot90(PHOTO, -1)
  assert_same(PNG[:HEAD] + odd + PNG[HEAD:], expected)
  assert_same(PNG[:-12] + odd + PNG[-12:], expected)


def test_a_png_without_its_end():
  for cut in range(1, 17):  # IEND, then the check sum of the pixels
    assert_same(PNG[:-cut], PHOTO, cut)
  for cut in range(25, len(PNG) - HEAD, 501):
    assert_refused(PNG[:-cut])


def segment(marker, content):
  return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content


TIFF = b"II*\0\x08\0\0\0\1\0\x12\1"  # the begin of one tag
SEGMENTS = [
  (0xE0, b"JFIF\0"),
  (0xE0, b"JFXX\0\x10"),
  (0xE1, b"Exif\0\0"),
  (0xE1, b"Exif\0\0garbage"),
  (0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
  (0xE1, b"Exif\0\0" + TIFF + b"\7\0\xff\xff\xff\xff"),
  (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="),
  (0xE1, b"\xff\xda" * 900),  # as of a thumbnail in it
  (0xE2, b"MPF\0garbage"),
  (0xE2, b"MPF\0" + TIFF),
  (0xE2, b"ICC_PROFILE\0"),
  (0xE2, b"ICC_PROFILE\0\1\1garbage"),
  (0xE5, bytes(60_000)),
  (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\1a"),
  (0xEE, b"Adobe"),
  (0xFE, b"\xff\xd9" * 900),
]
JPEGS = [
  {"quality": 90},
  {"quality": 90, "progressive": True},
  {"quality": 90, "restart_marker_blocks": 2},
]


@pytest.mark.parametrize(("marker", "content"), SEGMENTS)
def test_a_jpeg_beside_any_other_segment(marker, content):
  odd = segment(marker, content)
  for options in JPEGS[:2]:
    jpeg = encode("jpeg", **options)
    expected, tables = images.decode(jpeg), jpeg.index(b"\xff\xdb")
    assert_same(jpeg[:2] + odd + jpeg[2:], expected)
    assert_same(jpeg[:tables] + odd + jpeg[tables:], expected)


@pytest.mark.parametrize("options", JPEGS)
def test_a_jpeg_that_lacks_only_its_end(options):
  jpeg = encode("jpeg", **options)
  expected = images.decode(jpeg)
  for cut in (1, 2):
    assert_same(jpeg[:-cut], expected)
  small = images.decode(
    encode("jpeg", Image.fromarray(PHOTO).resize((512, 384)))
  )
  assert small.shape == (384, 512, 3)
  for cut in (4, 5, 6, 8, 12, 50, 200, 400):
    assert_refused(jpeg[:-cut])


def test_a_jpeg_cut_where_a_part_of_it_ends():
  """Nothing is missing of that part, but those after it are."""
  jpeg = encode("jpeg", quality=90, restart_marker_blocks=2)
  for found in list(re.finditer(rb"\xff[\xd0-\xd7]", jpeg))[-2:]:
    assert_refused(jpeg[: found.start()])
    assert_refused(jpeg[: found.end()])
  jpeg = encode("jpeg", quality=90, progressive=True)
  first = jpeg.index(b"\xff\xda")
  for found in re.finditer(rb"\xff[\xc4\xda]", jpeg[first + 2 :]):
    assert_refused(jpeg[: first + 2 + found.start()])


ALPHA = np.arange(64 * 48, dtype=np.uint32).reshape(48, 64, 1) % 256


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("alpha", [True, False])
def test_a_webp_beside_any_metadata(lossless, alpha):
  shown = (
    np.concatenate([PHOTO, ALPHA], -1).astype(np.uint8) if alpha else PHOTO
  )
  webp = encode("webp", Image.fromarray(shown), lossless=lossless, quality=90)
  expected, pixels = images.decode(webp), pixels_of(webp)
  features = (b"VP8X", bytes([0x2C | 0x10 * alpha, 0, 0, 0]) + sizes(63, 47))
  for name in (b"EXIF", b"XMP ", b"ICCP", b"abcd"):
    for kind in ("empty", "short", "random"):
      odd = (name, GARBAGE[kind])
      assert_same(riff(features, *pixels, odd), expected)
      assert_same(riff(features, odd, *pixels), expected)
  assert_same(riff(features, *pixels, (b"EXIF", bytes(90)))[:-50], expected)
  turned = riff(features, *pixels, (b"EXIF", exif(6)))
  assert_same(turned, np.rot90(expected, -1))
  assert_refused(webp[:-30])


def test_a_gif_without_its_end_and_with_notes():
  gif = encode("gif", Image.fromarray(PHOTO).quantize(16))
  expected, begin = images.decode(gif), gif.index(b",", 13 + 48)
  for cut in (1, 2):
    assert_same(gif[:-cut], expected)
  for odd in (
    b"!\xfe\xff" + b"a" * 255 + b"\0",
    b"!\xff\x0bICCRGBG1012\3abc\0",
  ):
    assert_same(gif[:begin] + odd * 20 + gif[begin:], expected)
  for cut in (10, 100):
    assert_refused(gif[:-cut])


@pytest.mark.parametrize(
  "tag",
  [
    (34665, 4, 1, 0xFFFFFFF0),  # EXIF
    (34665, 4, 1, 3),
    (34853, 4, 1, 0xFFFFFFF0),  # places
    (700, 1, 10_000, 0xFFFFF),  # XMP
    (34675, 7, 9_999_999, 0xFFFFFF),  # a profile
    (282, 5, 1, 0xFFFFFFF),  # resolution
    (65_000, 99, 1, 1),
  ],
)
def test_a_tiff_beside_tags_that_point_nowhere(tag):
  tiff = encode("tiff")
  (start,) = struct.unpack_from("<I", tiff, 4)
  (count,) = struct.unpack_from("<H", tiff, start)
  places = range(start + 2, start + 2 + 12 * count, 12)
  tags = {tiff[i : i + 2]: tiff[i : i + 12] for i in places}
  odd = struct.pack("<HHII", *tag)
  tags[odd[:2]] = odd
  order = sorted(tags.values(), key=lambda t: struct.unpack_from("<H", t))
  data = tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:]
  data += struct.pack("<H", len(order)) + b"".join(order) + bytes(4)
  assert_same(data, PHOTO)


@pytest.mark.parametrize("kind", ["tiff", "avif"])
def test_exif_and_profiles_that_are_garbage(kind):
  expected = images.decode(encode(kind))
  assert_same(encode(kind, icc_profile=bytes(200)), expected)
  assert_same(encode(kind, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), expected)
