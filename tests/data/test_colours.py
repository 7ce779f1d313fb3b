"""Samples of any depth, transparency and colour profiles as sRGB of 8 bits."""

import concurrent.futures
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from imagen_jax.data import images

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's kinds of colour
PASSES = (
  (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2),
  (0, 1, 2, 2), (1, 0, 2, 1),
)  # fmt: skip


def encode(picture, kind="png", **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def chunk(name, content):
  check = zlib.crc32(name + content).to_bytes(4)
  return len(content).to_bytes(4) + name + content + check


def lines(values, depth):
  """The rows of a PNG's samples, without a filter."""
  if depth >= 8:
    return [b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in values]
  bits = values[..., :1] >> np.arange(depth)[::-1] & 1
  packed = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
  return [b"\0" + row.tobytes() for row in packed]


def write_png(values, depth, kind, *chunks, interlaced=False):
  height, width = values.shape[:2]
  parts = [values]
  if interlaced:
    parts = [values[y::down, x::right] for y, x, down, right in PASSES]
  rows = [row for part in parts if part.size for row in lines(part, depth)]
  header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    [
      chunk(b"IHDR", header),
      *chunks,
      chunk(b"IDAT", zlib.compress(b"".join(rows))),
      chunk(b"IEND", b""),
    ]
  )


def some_values(depth, kind):
  """Values [19, 17, C] of which a part are as the first one."""
  rng, most = np.random.default_rng(depth), 2**depth
  values = rng.integers(0, most, (19, 17, CHANNELS[kind]), np.int64)
  values[:6] = values[0, 0]
  values[6:9] = values[0, 0] ^ (most > 2)  # that differ in the last bit
  return values


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("spare", [0, 0xFFFF], ids=["exact", "spare bits"])
@pytest.mark.parametrize(
  ("kind", "depth"),
  [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)],
)
def test_a_transparent_value_of_any_depth(kind, depth, spare, interlaced):
  values = some_values(depth, kind)
  key = values[0, 0] | (spare << depth & 0xFFFF)
  data = write_png(
    values, depth, kind, chunk(b"tRNS", key.astype(">u2").tobytes()),
    interlaced=interlaced,
  )  # fmt: skip
  expected = np.round(values * (255 / (2**depth - 1)))
  expected[(values == values[0, 0]).all(-1)] = 255
  np.testing.assert_array_equal(
    images.decode(data), np.broadcast_to(expected, (19, 17, 3))
  )


@pytest.mark.parametrize(("kind", "depth"), [(2, 16), (4, 8), (4, 16), (6, 16)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_colours_of_16_bits_are_rounded(kind, depth, interlaced):
  values = some_values(depth, kind)
  eight = np.round(values * (255 / (2**depth - 1)))
  if kind != 2:
    colour, alpha = eight[..., :-1], eight[..., -1:] / 255
    eight = colour * alpha + 255 * (1 - alpha)
  found = images.decode(write_png(values, depth, kind, interlaced=interlaced))
  # Blending rounds, too.
  np.testing.assert_allclose(
    found, np.broadcast_to(eight, found.shape), atol=0 if kind == 2 else 0.51
  )


@pytest.mark.parametrize(
  ("kind", "content"),
  [(0, b"\0"), (0, b"\0\1\0"), (2, b"\0\1"), (4, b"\0\1"), (3, bytes(9))],
)
def test_a_transparent_value_of_another_kind_is_ignored(kind, content):
  values = np.ones((8, 8, CHANNELS[kind]), np.int64) * (1 if kind == 3 else 255)
  palette = chunk(b"PLTE", bytes([9, 9, 9, 255, 255, 255]))
  chunks = [palette] * (kind == 3) + [chunk(b"tRNS", content)]
  assert (images.decode(write_png(values, 8, kind, *chunks)) == 255).all()


@pytest.mark.parametrize(
  ("order", "bits"),
  # PIL reads 12 bits of the first order only.
  [(order, bits) for order in "<>" for bits in (1, 4, 8, 16)] + [("<", 12)],
)
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_grey_tiffs(order, bits, white_is_zero):
  ramp = np.linspace(0, 2**bits - 1, 16).round().astype(np.int64)
  if bits == 12:
    packed = np.zeros(24, np.uint8)
    packed[0::3], packed[2::3] = ramp[::2] >> 4, ramp[1::2] & 255
    packed[1::3] = (ramp[::2] & 15) << 4 | ramp[1::2] >> 8
    row = packed.tobytes()
  else:
    row = lines(ramp[None, :, None], bits)[0][1:]
    if bits == 16:
      row = ramp.astype(f"{order}u2").tobytes()
  tags = {
    256: 16, 257: 9, 258: bits, 259: 1, 262: 1 - white_is_zero, 273: 200,
    277: 1, 278: 9, 279: 9 * len(row),
  }  # fmt: skip
  pack = lambda form, *values: struct.pack(order + form, *values)
  data = (b"II" if order == "<" else b"MM") + pack("HIH", 42, 8, len(tags))
  for tag, value in tags.items():
    data += pack("HHIHH", tag, 3, 1, value, 0)
  data = (data + bytes(4)).ljust(200, b"\0") + row * 9
  expected = np.round(ramp * (255 / (2**bits - 1)))
  expected = 255 - expected if white_is_zero else expected
  found = images.decode(data)
  np.testing.assert_allclose(found[3, :, 0], expected, atol=0.51)


# Profiles, made by the letter of ICC.1: a header, and tags of XYZ and curves.
def profile(space, tags, side=b"XYZ "):
  head = struct.pack(">I4sI4s4s4s", 0, b"test", 0x2200000, b"mntr", space, side)
  head = (head.ljust(36, b"\0") + b"acsp").ljust(68, b"\0")
  head = (head + struct.pack(">iii", 63190, 65536, 54061)).ljust(128, b"\0")
  table, body, place = b"", b"", 132 + 12 * len(tags)
  for name, content in tags.items():
    content += b"\0" * (-len(content) % 4)
    table += struct.pack(">4sII", name, place + len(body), len(content))
    body += content
  whole = head + struct.pack(">I", len(tags)) + table + body
  return len(whole).to_bytes(4) + whole[4:]


def xyz(*values):
  numbers = [round(value * 65536) for value in values]
  return b"XYZ \0\0\0\0" + struct.pack(">iii", *numbers)


def curve(gamma):
  return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


WHITE = {b"wtpt": xyz(0.9642, 1, 0.8249)}
ADOBE_RGB = profile(
  b"RGB ",
  WHITE
  | {
    b"rXYZ": xyz(0.60974, 0.31111, 0.01947),
    b"gXYZ": xyz(0.20528, 0.62567, 0.06087),
    b"bXYZ": xyz(0.14919, 0.06322, 0.74457),
  }
  | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(2.19921875)),
)
LINEAR_GREY = profile(b"GRAY", WHITE | {b"kTRC": curve(1)})


def cmyk_profile():
  """A printer whose black ink alone has an effect, linear in L*."""
  levels = bytes(range(256))
  grid = b"".join(
    bytes([0 if ink & 1 else 255, 128, 128]) for ink in range(16)
  )  # black changes fastest
  one = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
  table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + one
  table += levels * 4 + grid + levels * 3
  return profile(b"CMYK", WHITE | {b"A2B0": table, b"A2B1": table}, b"Lab ")


def flat(mode, colour, side=16):
  return Image.new(mode, (side, side), colour)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp", "avif"])
def test_a_profile_is_converted_to_srgb(kind):
  options = {"webp": {"lossless": True}, "jpeg": {"quality": 100}}.get(kind, {})
  data = encode(
    flat("RGB", (200, 100, 50)), kind, icc_profile=ADOBE_RGB, **options
  )
  assert abs(images.decode(data)[0, 0] - np.array([227, 100, 42])).max() <= (
    0 if kind in ("png", "tiff", "webp") else 3
  )


def srgb_of_lightness(lightness):
  y = ((lightness + 16) / 116) ** 3
  return 255 * (1.055 * y ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_profile_of_grey(mode):
  """Half of the light is 188 in sRGB."""
  picture = flat(mode, 128 if mode == "L" else (128, 255))
  found = images.decode(encode(picture, icc_profile=LINEAR_GREY))
  assert abs(found.astype(int) - 188).max() <= 1


@pytest.mark.parametrize("kind", ["tiff", "jpeg"])
def test_a_profile_of_inks(kind):
  picture = flat("CMYK", (0, 0, 0, 128))
  assert abs(images.decode(encode(picture, kind))[0, 0, 0] - 127.0) <= 1
  data = encode(picture, kind, icc_profile=cmyk_profile())
  expected = srgb_of_lightness(100 * 127 / 255)
  assert abs(images.decode(data)[0, 0] - expected).max() <= 2


def test_a_profile_under_transparency():
  picture = flat("RGBA", (200, 100, 50, 255))
  picture.putpixel((1, 0), (0, 0, 0, 0))
  found = images.decode(encode(picture, icc_profile=ADOBE_RGB))
  assert found[0, :2].tolist() == [[227, 100, 42], [255, 255, 255]]
  palette = flat("RGB", (200, 100, 50)).quantize(4)
  found = images.decode(encode(palette, icc_profile=ADOBE_RGB))
  assert found[0, 0].tolist() == [227, 100, 42]


def colours():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (16, 16, 3), np.uint8)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
  "odd",
  [
    SRGB,
    b"",
    b"garbage",
    bytes(200),
    ADOBE_RGB[:-90],
    ADOBE_RGB[:140] + bytes(len(ADOBE_RGB) - 140),
    LINEAR_GREY,  # of another kind of image
    cmyk_profile(),
    SRGB + bytes(2**22),
  ],
  ids=[
    "sRGB", "empty", "garbage", "zeros", "cut", "no tags", "grey", "inks",
    "huge",
  ],
)  # fmt: skip
def test_pixels_stay_under_srgb_and_unsound_profiles(odd):
  data = encode(Image.fromarray(colours()), icc_profile=odd)
  np.testing.assert_array_equal(images.decode(data), colours())


def test_damaged_profiles_give_an_image():
  rng = np.random.default_rng(0)
  for _ in range(100):
    odd = np.frombuffer(ADOBE_RGB, np.uint8).copy()
    odd[rng.integers(0, len(odd), 3)] = rng.integers(0, 256, 3)
    data = encode(Image.fromarray(colours()), icc_profile=odd.tobytes())
    assert images.decode(data).shape == (16, 16, 3)


def test_threads_share_a_profile():
  data = encode(Image.fromarray(colours()), icc_profile=ADOBE_RGB)
  expected = images.decode(data)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for found in pool.map(images.decode, [data] * 64):
      np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "LA"])
def test_a_large_image_is_the_same_by_rows(monkeypatch, mode):
  picture = Image.fromarray(colours()).resize((70, 90)).convert(mode)
  if mode in ("RGBA", "LA"):
    picture.putalpha(Image.fromarray(colours()[..., 0]).resize((70, 90)))
  data = encode(picture, icc_profile=ADOBE_RGB)
  whole = images.decode(data)
  monkeypatch.setattr(images, "_LARGE", 1000)
  np.testing.assert_array_equal(images.decode(data), whole)
  small = images.decode(data, 4)  # by 5
  np.testing.assert_array_equal(
    small, np.asarray(Image.fromarray(whole).reduce(5))
  )


@pytest.mark.parametrize(
  ("picture", "expected"),
  [
    (Image.fromarray(np.full((8, 8), 65535, np.uint16)), 255),
    (Image.fromarray(np.full((8, 8), 257 * 100, np.int32)), 100),
    (flat("LA", (0, 0)), 255),
    (flat("1", 1), 255),
    (flat("P", 0), 0),
  ],
)
def test_images_of_pils_are_read_as_their_files_are(picture, expected):
  assert (images.decode(picture) == expected).all()
