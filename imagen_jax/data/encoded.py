"""Image files reduced to the data that decodes their first image.

Metadata is often huge, damaged or malformed, and decoders fail on it. So files
are rewritten without metadata before they are decoded. Orientation and colour
profile are read here, as far as they are well-formed.
"""

import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image, features

from imagen_jax.data import jpeg

_MOST_METADATA = 2**22  # bytes of a profile; profiles of printers have 2**21
_ORIENTATION = 0x0112  # the tag of EXIF
Canvas = tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Still:
  """Holds the file of one image, and the metadata that decoding needs.

  Attributes:
    data: the file, stripped of metadata if its format is known here.
    orientation: 1 to 8 as in EXIF; None if it was not read here.
    profile: the ICC profile; None if there is none or it was not read here.
    key: the channel values of transparent pixels, in 8 bits, or in 16 if the
      file has 16-bit samples.
    wide: the channels, if they have 16 bits and PIL would keep only the higher
      8. "LA" is then stored as "RGBA": a high and a low byte per channel.
    bits: the bit depth of grey values that PIL returns in 16 bits.
    inverted: true if those grey values run from white to black.
    canvas: (width, height) of the canvas and (x, y) of the image on it; None
      if the image fills its canvas.
  """

  data: bytes
  orientation: int | None = None
  profile: bytes | None = None
  key: tuple[int, ...] | None = None
  wide: str | None = None
  bits: int = 16
  inverted: bool = False
  canvas: Canvas | None = None


def read_still(data: bytes, check_size: Callable[[int, int], None]) -> Still:
  """Reads the first image of a file.

  Args:
    data: the file, in any format.
    check_size: raises ValueError for a width and height that are too large. It
      is called for formats whose decoders allocate when they open a file.

  Returns:
    The image. A file in a format that is unknown here is left unchanged.

  Raises:
    ValueError: the size is refused, or decoding would take too long.
  """
  if data.startswith(b"\x89PNG\r\n\x1a\n"):
    return _read_png(data, check_size)
  if data.startswith(b"\xff\xd8"):
    found, exif, xmp, profile = jpeg.strip(data)
    return Still(found, _orientation(exif, xmp), profile)
  if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
    return _read_webp(data, check_size)
  if data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
    check_size(*struct.unpack_from("<HH", data, 6))
  if data.startswith((b"II*\0", b"MM\0*")):
    return _read_tiff(data)
  if data[4:8] == b"ftyp":
    return _read_heif(data, check_size)
  return Still(data)


def read_orientation(exif: Image.Exif) -> int | None:
  """Returns the orientation, 1 to 8; None if it is missing or invalid."""
  value = exif.get(_ORIENTATION)
  return value if isinstance(value, int) and 1 <= value <= 8 else None


def _orientation(exif: bytes | None, xmp: bytes | None) -> int | None:
  """Returns the orientation by EXIF, else by XMP; None if neither is valid."""
  if exif is not None:
    parsed = Image.Exif()
    try:
      parsed.load(exif)
      if (found := read_orientation(parsed)) is not None:
        return found
    except Exception:  # damage makes PIL raise errors of any type
      pass
  tag = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp or b"")
  return int(tag[1]) if tag else None


# HEIF: a box of brands, then those that the brands name.
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def _read_heif(data: bytes, check_size: Callable[[int, int], None]) -> Still:
  """Converts HEIC, which PIL does not read, to PNG; leaves AVIF as it is."""
  box = data[: max(12, min(struct.unpack(">I", data[:4])[0], 256))]
  brands = {box[i : i + 4] for i in (8, *range(16, len(box), 4))}
  if brands & _AVIF:
    if not features.check("avif"):
      raise ValueError("AVIF, which needs a Pillow that was built with AVIF")
    return Still(data)
  if not brands & _HEIC:
    return Still(data)
  try:
    # No requirement: few datasets have HEIC, and prepare stores it as PNG.
    import pillow_heif
  except ImportError as error:
    raise ValueError("HEIC, which needs the package pillow_heif") from error
  found = pillow_heif.open_heif(io.BytesIO(data))  # upright
  check_size(*found.size)
  file = io.BytesIO()
  found.to_pillow().save(file, "png", compress_level=1)
  return Still(file.getvalue(), 1, found.info.get("icc_profile"))


# PNG: a signature, then chunks of length, name, content and checksum.
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT")
_RAW_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")
_XMP = b"XML:com.adobe.xmp"


def _read_png(data: bytes, check_size: Callable[[int, int], None]) -> Still:
  """Keeps the critical chunks, and adds the end chunk of a truncated file."""
  kept, others = _read_chunks(data)
  if not kept or kept[0][0] != b"IHDR" or len(kept[0][1]) != 13:
    return Still(data)  # the decoder raises the reason
  header = kept[0][1]
  check_size(*struct.unpack_from(">II", header))
  depth, kind = header[8], header[9]
  key, alphas = None, others.get(b"tRNS", b"")
  colours = next((len(c) // 3 for name, c, _ in kept if name == b"PLTE"), 0)
  if kind == 3 and 0 < len(alphas) <= colours:
    first = next((i for i, c in enumerate(kept) if c[0] == b"IDAT"), len(kept))
    kept.insert(first, (b"tRNS", alphas, _chunk(b"tRNS", alphas)))
  elif (kind, len(alphas)) in ((0, 2), (2, 6)):
    values = struct.unpack(f">{len(alphas) // 2}H", alphas)
    most = 2**depth - 1
    scale = max(1, 255 // most)  # as PIL scales the pixels
    key = tuple((value & most) * scale for value in values)
  wide = {2: "RGB", 4: "LA", 6: "RGBA"}.get(kind) if depth == 16 else None
  if wide == "LA":
    header = header[:8] + bytes([8, 6]) + header[10:]
    kept[0] = (b"IHDR", header, _chunk(b"IHDR", header))
  exif = others.get(b"eXIf")
  for name in _RAW_EXIF:
    exif = exif or _raw_profile(_text(*others.get(name, (b"", b""))))
  xmp = _text(*others.get(_XMP, (b"", b"")))
  profile = others.get(b"iCCP", b"").partition(b"\0")[2]
  return Still(
    b"".join([data[:8], *(c[2] for c in kept), _chunk(b"IEND", b"")]),
    _orientation(exif, xmp),
    _inflate(profile[1:]),
    key,
    wide,
  )


def _read_chunks(
  data: bytes,
) -> tuple[list[tuple[bytes, bytes, bytes]], dict[bytes, Any]]:
  """Returns the critical chunks of a PNG, and its well-formed metadata.

  Returns:
    kept: (name, content, chunk) of each critical chunk, in file order.
    others: the content of each metadata chunk by name. A text chunk is stored
      as (name, content) by its keyword.
  """
  kept, others, position = [], {}, 8
  while position + 8 <= len(data):
    length, name = struct.unpack_from(">I4s", data, position)
    content = data[position + 8 : position + 8 + length]
    end = position + 12 + length
    if name == b"IEND":
      break
    if end > len(data):
      if name == b"IDAT":  # the decoder detects missing pixels
        kept.append((name, content, _chunk(name, content)))
      break
    if name in _CRITICAL:
      kept.append((name, content, data[position:end]))
    elif zlib.crc32(name + content).to_bytes(4) == data[end - 4 : end]:
      # A transparent colour counts only before the pixels.
      late = name == b"tRNS" and kept and kept[-1][0] == b"IDAT"
      if name in (b"tRNS", b"iCCP", b"eXIf") and not late:
        others.setdefault(name, content)
      elif name in (b"tEXt", b"zTXt", b"iTXt"):
        others.setdefault(content.partition(b"\0")[0], (name, content))
    position = end
  return kept, others


def _chunk(name: bytes, content: bytes) -> bytes:
  check = zlib.crc32(name + content).to_bytes(4)
  return len(content).to_bytes(4) + name + content + check


def _inflate(data: bytes) -> bytes | None:
  """Decompresses metadata; returns None if it is malformed or too large."""
  stream = zlib.decompressobj()
  try:
    found = stream.decompress(data, _MOST_METADATA)
  except zlib.error:
    return None
  return found if found and stream.eof else None


def _text(name: bytes, content: bytes) -> bytes | None:
  """Returns the text of a tEXt, zTXt or iTXt chunk; None if malformed."""
  text = content.partition(b"\0")[2]
  if name == b"tEXt":
    return text
  if name == b"zTXt":
    return _inflate(text[1:])
  if name == b"iTXt":
    parts = text[2:].split(b"\0", 2)  # language, keyword, text
    if len(parts) == 3:
      return _inflate(parts[2]) if text[:1] == b"\1" else parts[2]
  return None


def _raw_profile(text: bytes | None) -> bytes | None:
  """Returns EXIF data from ImageMagick's hexadecimal encoding."""
  try:
    return bytes.fromhex(b"".join((text or b"").split()[2:]).decode()) or None
  except ValueError:
    return None


# WebP: chunks of name, length and content, padded to even lengths.
def _read_webp(data: bytes, check_size: Callable[[int, int], None]) -> Still:
  """Keeps the first frame; the animation decoder would hold all frames."""
  found = {}
  for name, content in _webp_chunks(data[12:]):
    found.setdefault(name, content)
  pixels, canvas = found, None
  if len(found.get(b"VP8X", b"")) >= 10:
    size = _size24(found[b"VP8X"], 4)
    check_size(*size)
    frame = found.get(b"ANMF", b"")
    if len(frame) >= 16 and found[b"VP8X"][0] & 2:
      x, y = (2 * (n - 1) for n in _size24(frame, 0))
      pixels = dict(_webp_chunks(frame[16:]))
      canvas = (size, (x, y))
  name, size = _webp_size(pixels)
  if name is None:
    return Still(data)  # the decoder raises the reason
  check_size(*size)
  chunks = [name]
  if name == b"VP8 " and b"ALPH" in pixels:
    edges = b"".join((n - 1).to_bytes(3, "little") for n in size)
    pixels = pixels | {b"VP8X": b"\x10\0\0\0" + edges}
    chunks = [b"VP8X", b"ALPH", b"VP8 "]
  body = b"WEBP" + b"".join(
    name + len(pixels[name]).to_bytes(4, "little") + pixels[name]
    + b"\0" * (len(pixels[name]) % 2)
    for name in chunks
  )  # fmt: skip
  return Still(
    b"RIFF" + len(body).to_bytes(4, "little") + body,
    _orientation(found.get(b"EXIF"), found.get(b"XMP ")),
    found.get(b"ICCP"),
    canvas=canvas,
  )


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Yields the name and content of each chunk."""
  position = 0
  while position + 8 <= len(data):
    name, length = struct.unpack_from("<4sI", data, position)
    yield name, data[position + 8 : position + 8 + length]
    position += 8 + length + length % 2


def _size24(data: bytes, position: int) -> tuple[int, int]:
  """Reads two 3-byte numbers, each stored as its value minus one."""
  ends = (position, position + 3)
  return tuple(int.from_bytes(data[i : i + 3], "little") + 1 for i in ends)


def _webp_size(
  chunks: dict[bytes, bytes],
) -> tuple[bytes | None, tuple[int, int]]:
  """Returns the name of the pixel chunk, and the width and height."""
  lossy, lossless = chunks.get(b"VP8 ", b""), chunks.get(b"VP8L", b"")
  if len(lossy) >= 10:
    width, height = struct.unpack_from("<HH", lossy, 6)
    return b"VP8 ", (width & 0x3FFF, height & 0x3FFF)
  if len(lossless) >= 5:
    bits = int.from_bytes(lossless[1:5], "little")
    return b"VP8L", ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
  return None, (0, 0)


def _read_tiff(data: bytes) -> Still:
  """Reads the bit depth and polarity of 12-bit and 16-bit grey.

  PIL does not invert WhiteIsZero at these depths. So the file is rewritten as
  BlackIsZero, and the result is marked as inverted.
  """
  order = "<" if data[:2] == b"II" else ">"
  try:
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    fields = {}
    for i in range(count):
      place = start + 2 + 12 * i
      tag, _, number = struct.unpack_from(f"{order}HHI", data, place)
      (value,) = struct.unpack_from(f"{order}H", data, place + 8)
      fields.setdefault(tag, (place, number, value))
  except struct.error:
    return Still(data)
  (_, count, bits), (place, _, photometric) = map(
    fields.get, (258, 262), ((0, 0, 0), (0, 0, None))
  )
  if count != 1 or bits not in (12, 16):
    return Still(data)
  if photometric == 0:
    one = struct.pack(f"{order}H", 1)
    data = data[: place + 8] + one + data[place + 10 :]
  return Still(data, bits=bits, inverted=photometric == 0)
