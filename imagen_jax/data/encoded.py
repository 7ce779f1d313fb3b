"""Files of images reduced to what the pixels of the first image need.

Metadata is often huge, damaged or malformed, and decoders fail on it. So the
files are rewritten without it before they are decoded. What is sound of the
orientation and of the colour profile is read here.
"""

import dataclasses
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

_MOST_METADATA = 2**22  # bytes of a profile: those of printers have 2**21
MOST_SCANS = 64  # of a JPEG: the usual progressive one has ten
_ORIENTATION = 0x0112  # the tag of EXIF
Canvas = tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Still:
  """The file of one image, and what was beside its pixels.

  Attributes:
    data: the file, without metadata as far as its format is known here.
    orientation: 1 to 8 as EXIF has it, None if it is not known here.
    profile: the ICC profile, None if there is none or it is not known here.
    key: the values of transparent pixels, of 8 bits, or 16 where the file has.
    wide: the channels of 16 bits where PIL would keep the higher 8. "LA" is
      then stored as "RGBA", a high and a low byte of each.
    bits: the bits of grey values that PIL gives in 16.
    inverted: those values count from white to black.
    canvas: the size that the image is a part of, and its place on it.
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
  """Finds the first image of a file.

  Args:
    data: the file, of any format.
    check_size: raises ValueError for a width and height that are too large. It
      is called for formats whose decoders allocate when they open a file.

  Returns:
    The file itself where nothing is known of its format.

  Raises:
    ValueError: the size is refused, or decoding would take too long.
  """
  if data.startswith(b"\x89PNG\r\n\x1a\n"):
    return _read_png(data, check_size)
  if data.startswith(b"\xff\xd8"):
    return _read_jpeg(data)
  if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
    return _read_webp(data, check_size)
  if data.startswith((b"GIF87a", b"GIF89a")) and len(data) >= 10:
    check_size(*struct.unpack_from("<HH", data, 6))
  if data.startswith((b"II*\0", b"MM\0*")):
    return _read_tiff(data)
  return Still(data)


def read_orientation(exif: Image.Exif) -> int | None:
  """Returns the orientation, None for one that is not there or not sound."""
  value = exif.get(_ORIENTATION)
  return value if isinstance(value, int) and 1 <= value <= 8 else None


def _orientation(exif: bytes | None, xmp: bytes | None) -> int | None:
  """Returns the orientation by EXIF, else by XMP; None if neither is sound."""
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


# PNG: a signature, and chunks of length, name, content and check sum.
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT")
_RAW_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")
_XMP = b"XML:com.adobe.xmp"


def _read_png(data: bytes, check_size: Callable[[int, int], None]) -> Still:
  """Keeps the critical chunks; an end that is cut is added."""
  kept, others = _read_chunks(data)
  if not kept or kept[0][0] != b"IHDR" or len(kept[0][1]) != 13:
    return Still(data)  # the decoder says why
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
  """Returns the critical chunks of a PNG, and the sound ones of the others.

  The first are names, contents and whole chunks, in their order. The others are
  contents by name, and those of texts names and contents by keyword.
  """
  kept, others, position = [], {}, 8
  while position + 8 <= len(data):
    length, name = struct.unpack_from(">I4s", data, position)
    content = data[position + 8 : position + 8 + length]
    end = position + 12 + length
    if name == b"IEND":
      break
    if end > len(data):
      if name == b"IDAT":  # the decoder says whether pixels are missing
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
  """Decompresses metadata; None if it is not sound, or too large."""
  stream = zlib.decompressobj()
  try:
    found = stream.decompress(data, _MOST_METADATA)
  except zlib.error:
    return None
  return found if found and stream.eof else None


def _text(name: bytes, content: bytes) -> bytes | None:
  """Returns the text of a PNG's chunk tEXt, zTXt or iTXt; None if not sound."""
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
  """Returns EXIF from ImageMagick's hexadecimal form of it."""
  try:
    return bytes.fromhex(b"".join((text or b"").split()[2:]).decode()) or None
  except ValueError:
    return None


# JPEG: segments of FF, a marker, a length and content, and scans of pixels.
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff+([^\x00\xff\x01\xd0-\xd7])", re.DOTALL)


def _read_jpeg(data: bytes) -> Still:
  """Keeps the segments that say how pixels are decoded."""
  kept, exif, xmp, profile = [b"\xff\xd8"], b"", None, {}
  for marker, content, position in _segments(data):
    if marker == _END:
      break
    if marker == _SCAN:  # the rest is pixels
      kept.append(data[position:])
      break
    if marker == 0xE1 and content.startswith(b"Exif\0\0"):
      exif += content if not exif else content[6:]
    elif marker == 0xE1 and content.startswith(b"http://ns.adobe.com/xap/1.0/"):
      xmp = xmp or content
    elif marker == 0xE2 and content.startswith(b"ICC_PROFILE\0"):
      profile[content[12:13]] = content[14:]
    # Those two say how colours are stored, if they are whole.
    colours = (content[:5] == b"JFIF\0" and len(content) >= 14) or (
      content[:5] == b"Adobe" and len(content) >= 12
    )
    if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or colours:
      kept.append(b"\xff" + bytes([marker]))
      kept.append((len(content) + 2).to_bytes(2) + content)
  found = b"".join(kept)
  if found.count(b"\xff\xda") > MOST_SCANS:
    scans = sum(marker == _SCAN for marker, _, _ in _segments(found))
    if scans > MOST_SCANS:
      raise ValueError(f"{scans} scans, expected at most {MOST_SCANS}")
  whole = b"".join(profile[number] for number in sorted(profile))
  return Still(
    found,
    _orientation(exif or None, xmp),
    whole if 0 < len(whole) <= _MOST_METADATA else None,
  )


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
  """Yields the marker, content and position of a JPEG's segments.

  The last one is the first end marker, if there is one.
  """
  position = 2
  while found := _MARKER.search(data, position):
    marker, begin = found[1][0], found.end()
    if marker in (_START, _END):
      position, content = begin, b""
    else:
      length = int.from_bytes(data[begin : begin + 2])
      position, content = begin + length, data[begin + 2 : begin + length]
      if length < 2 or position > len(data):
        return  # it is cut
    yield marker, content, found.end() - 2
    if marker == _END:
      return


def end_jpeg(data: bytes) -> list[bytes]:
  """Ends a JPEG that lacks its end marker, in ways that must come out alike.

  Behind what is there stand other bits each time. If they change no pixel, no
  bits of pixels are missing.

  Returns:
    Some files; none if the end marker is there, or a scan is missing.
  """
  markers, left = [], {}  # for each component, the bits that no scan has had
  for marker, content, _ in _segments(data):
    markers.append(marker)
    if marker in _FRAMES:
      names = content[6::3]
      left = {name: [99] * (64 if marker & 2 else 1) for name in names}
    elif marker == _SCAN and len(content) >= 4:
      names = content[1 : 2 * content[0] : 2]
      first, last, bits = content[-3], content[-2], content[-1] & 15
      for name in names:
        if name in left:
          spectrum = left[name]
          for i in range(first, min(last + 1, len(spectrum))):
            spectrum[i] = bits
  if _END in markers or not left or any(map(any, left.values())):
    return []
  data = data.rstrip(b"\xff")
  # A decoder that waits for a restart finds one, whichever it waits for.
  restarts = [b"\xff" + bytes([0xD0 + i % 8]) for i in range(16)]
  return [
    data + b"".join(fill * 64 + restart for restart in restarts) + b"\xff\xd9"
    for fill in (b"\x00", b"\xff\x00", b"\xa5")
  ]


# WebP: chunks of a name, a length and content, padded to even lengths.
def _read_webp(data: bytes, check_size: Callable[[int, int], None]) -> Still:
  """Keeps the first frame: the decoder of animations would hold them all."""
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
    return Still(data)  # the decoder says why
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
  position = 0
  while position + 8 <= len(data):
    name, length = struct.unpack_from("<4sI", data, position)
    yield name, data[position + 8 : position + 8 + length]
    position += 8 + length + length % 2


def _size24(data: bytes, position: int) -> tuple[int, int]:
  """Returns two numbers of three bytes, each stored less one."""
  ends = (position, position + 3)
  return tuple(int.from_bytes(data[i : i + 3], "little") + 1 for i in ends)


def _webp_size(
  chunks: dict[bytes, bytes],
) -> tuple[bytes | None, tuple[int, int]]:
  """Returns the name of the chunk of pixels, and their width and height."""
  lossy, lossless = chunks.get(b"VP8 ", b""), chunks.get(b"VP8L", b"")
  if len(lossy) >= 10:
    width, height = struct.unpack_from("<HH", lossy, 6)
    return b"VP8 ", (width & 0x3FFF, height & 0x3FFF)
  if len(lossless) >= 5:
    bits = int.from_bytes(lossless[1:5], "little")
    return b"VP8L", ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
  return None, (0, 0)


def _read_tiff(data: bytes) -> Still:
  """Finds what PIL leaves undone of grey of 12 and 16 bits.

  It inverts no WhiteIsZero: the file is read as BlackIsZero.
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
