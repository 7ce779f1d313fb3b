"""Files of all kinds, whole and damaged, as images."""

import io

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import images

COLOURS = [(250, 20, 30), (20, 240, 30), (30, 20, 250), (90, 100, 110)]
ORIENTATION = 0x0112
# PIL's of damage; pytest drops the filter that images.py sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def encode(picture, kind="png", **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def quarters(height=32, width=48):
  """An image with a colour in each quarter, uint8 [H, W, 3]."""
  image = np.zeros((height, width, 3), np.uint8)
  for i, colour in enumerate(COLOURS):
    top, left = i // 2 * height // 2, i % 2 * width // 2
    image[top : top + height // 2, left : left + width // 2] = colour
  return image


def assert_close(image, expected, tolerance):
  assert image.dtype == np.uint8 and image.shape == expected.shape
  distance = np.abs(image.astype(int) - expected)
  # Lossy kinds ring at the edges of the quarters: look inside of them.
  h, w = (n // 2 for n in expected.shape[:2])
  inside = [
    distance[y + h // 4 : y + 3 * h // 4, x + w // 4 : x + 3 * w // 4]
    for y in (0, h)
    for x in (0, w)
  ]
  assert max(part.max() for part in inside) <= tolerance


@pytest.mark.parametrize(
  ("kind", "options", "tolerance"),
  [
    ("png", {}, 0),
    ("bmp", {}, 0),
    ("ppm", {}, 0),
    ("tiff", {}, 0),
    ("tiff", {"compression": "tiff_lzw"}, 0),
    ("gif", {}, 0),
    ("webp", {"lossless": True}, 0),
    ("webp", {"quality": 95}, 8),
    ("jpeg", {"quality": 95, "subsampling": 0}, 4),
    ("jpeg", {"quality": 95, "progressive": True}, 8),
    ("jpeg2000", {}, 2),
    ("avif", {"quality": 95}, 8),
  ],
)
def test_kinds_of_files(kind, options, tolerance):
  image = quarters()
  data = encode(Image.fromarray(image), kind, **options)
  assert_close(images.decode(data), image, tolerance)


@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_cmyk(kind):
  image = quarters()
  cmyk = Image.fromarray(image).convert("CMYK")
  options = {"quality": 95} if kind == "jpeg" else {}
  assert_close(images.decode(encode(cmyk, kind, **options)), image, 8)


def test_jpeg_in_ycbcr_and_grey():
  image = quarters()
  for mode in ("YCbCr", "L"):
    picture = Image.fromarray(image).convert(mode)
    data = encode(picture, "jpeg", quality=95, subsampling=0)
    assert_close(images.decode(data), np.asarray(picture.convert("RGB")), 4)


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm", "jpeg2000"])
def test_grey_of_16_bits_keeps_its_range(kind):
  # PIL's own conversion cuts all above 255 to white.
  ramp = np.linspace(0, 65535, 32 * 48).round().astype(np.uint16)
  ramp = ramp.reshape(32, 48)
  grey = images.decode(encode(Image.fromarray(ramp), kind))
  np.testing.assert_array_equal(
    grey, np.repeat((ramp / 257).round().astype(np.uint8)[..., None], 3, -1)
  )


def test_black_and_white_and_palette():
  white = np.indices((8, 8)).sum(0) % 2 == 0
  bits = images.decode(encode(Image.fromarray(white)))
  np.testing.assert_array_equal(bits, np.repeat(white[..., None], 3, -1) * 255)
  picture = Image.fromarray(quarters()).quantize(4)
  assert picture.mode == "P"
  np.testing.assert_array_equal(
    images.decode(encode(picture)), np.asarray(picture.convert("RGB"))
  )


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_alpha_lies_on_white(kind):
  rgba = np.full((4, 5, 4), (200, 100, 0, 255), np.uint8)
  rgba[0, 0, 3], rgba[1, 1, 3] = 0, 51
  options = {"lossless": True, "exact": True} if kind == "webp" else {}
  image = images.decode(encode(Image.fromarray(rgba), kind, **options))
  assert tuple(image[0, 0]) == (255, 255, 255)
  np.testing.assert_allclose(image[1, 1], (244, 224, 204), atol=1)
  assert tuple(image[2, 2]) == (200, 100, 0)


def test_grey_with_alpha_lies_on_white():
  pair = Image.fromarray(np.full((4, 5, 2), (100, 0), np.uint8), mode="LA")
  assert (images.decode(encode(pair)) == 255).all()
  pair.putalpha(255)
  assert (images.decode(encode(pair)) == 100).all()


def test_transparent_palette_lies_on_white():
  picture = Image.new("P", (5, 4), 1)
  picture.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
  picture.putpixel((0, 0), 0)
  picture.putpixel((1, 0), 2)
  image = images.decode(encode(picture, transparency=0))  # one index
  assert image[0, :3].tolist() == [[255] * 3, [0, 0, 200], [200, 0, 0]]
  image = images.decode(encode(picture, "gif", transparency=0))
  assert image[0, :3].tolist() == [[255] * 3, [0, 0, 200], [200, 0, 0]]
  alphas = bytes([255, 0, 51])  # of every index
  image = images.decode(encode(picture, transparency=alphas))
  np.testing.assert_allclose(
    image[0, :3], [[0] * 3, [204, 204, 244], [255] * 3], atol=1
  )


def test_a_transparent_colour_lies_on_white():
  image = quarters()
  data = encode(Image.fromarray(image), transparency=COLOURS[0])
  decoded = images.decode(data)
  assert (decoded[:16, :24] == 255).all()
  np.testing.assert_array_equal(decoded[16:], image[16:])


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame(kind):
  first = quarters()
  rest = [Image.new("RGB", (48, 32), c) for c in ("black", "yellow")]
  options = {"lossless": True} if kind == "webp" else {}
  data = encode(
    Image.fromarray(first), kind, save_all=True, append_images=rest, **options
  )
  assert Image.open(io.BytesIO(data)).n_frames == 3
  assert_close(images.decode(data), first, 0)


@pytest.mark.parametrize("size", [None, 4])
def test_a_photo_with_a_second_picture_in_its_file(size):
  picture = Image.fromarray(quarters())
  data = encode(picture, "mpo", save_all=True, append_images=[picture])
  image = images.decode(data, size)
  assert image.shape == ((32, 48, 3) if size is None else (16, 24, 3))


# How the file of an upright image a holds it, by EXIF orientation.
STORED = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: np.rot90(a),  # left, as the camera was held; to be turned right
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
  ("kind", "tolerance"), [("png", 0), ("jpeg", 8), ("tiff", 0), ("webp", 12)]
)
def test_pictures_come_upright(kind, tolerance, orientation):
  upright = quarters()
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  stored = np.ascontiguousarray(STORED[orientation](upright))
  data = encode(Image.fromarray(stored), kind, exif=exif)
  assert_close(images.decode(data), upright, tolerance)


def test_an_orientation_that_does_not_exist_turns_nothing():
  exif = Image.Exif()
  exif[ORIENTATION] = 9
  data = encode(Image.fromarray(quarters()), exif=exif)
  np.testing.assert_array_equal(images.decode(data), quarters())


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "tiff"])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_a_truncated_file_is_named(kind, share):
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  data = encode(Image.fromarray(noise), kind)
  with pytest.raises(ValueError, match="image bytes cannot be decoded"):
    images.decode(data[: int(share * len(data))])


def test_damage_gives_a_picture_or_a_value_error():
  rng = np.random.default_rng(0)
  exif = Image.Exif()
  exif[ORIENTATION] = 6
  for kind in ("png", "jpeg", "webp", "gif", "tiff", "bmp", "jpeg2000"):
    options = {} if kind in ("gif", "bmp", "jpeg2000") else {"exif": exif}
    whole = np.frombuffer(
      encode(Image.fromarray(quarters()), kind, **options), np.uint8
    )
    for _ in range(100):
      data = whole.copy()
      data[rng.integers(0, len(data), 5)] = rng.integers(0, 256, 5)
      try:
        image = images.decode(data.tobytes(), 16)
      except ValueError as error:
        assert str(error).startswith("image bytes cannot be decoded (")
      else:
        assert image.dtype == np.uint8 and image.shape[2:] == (3,)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.mark.parametrize("data", [b"", b"not a picture", POSTSCRIPT])
def test_what_is_no_picture_is_named(data):
  with pytest.raises(ValueError) as caught:
    images.decode(data)
  expected = "image bytes cannot be decoded (of no known format)"
  assert str(caught.value) == expected


@pytest.mark.parametrize(
  ("pixels", "reason"),
  [
    (np.full((8, 8), 0.5, np.float32), "pixels are floats of unknown range"),
    (np.full((8, 8), 2**16, np.int32), "grey of more than 16 bits"),
    (np.full((8, 8), -1, np.int32), "grey of more than 16 bits"),
  ],
)
def test_measurements_are_no_pictures(pixels, reason):
  with pytest.raises(ValueError, match=rf"cannot be decoded \({reason}\)"):
    images.decode(encode(Image.fromarray(pixels), "tiff"))
