"""JPEG files stripped of metadata, and the repair of a missing end.

A JPEG is a sequence of segments (FF, a marker, a length, content) and of scans,
which hold the pixels.
"""

import re
import struct
from collections.abc import Iterator

# The usual progressive JPEG has ten scans.
MOST_SCANS, _FEW_SCANS = 64, 16
_MOST_SCANNED = 2**30  # pixels in all scans, 16 of the largest image by default
_MOST_METADATA = 2**22  # bytes of a profile; profiles of printers have 2**21
_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_MARKER = re.compile(rb"\xff([^\x00\xff\x01\xd0-\xd7])", re.DOTALL)


def strip(
  data: bytes,
) -> tuple[bytes, bytes | None, bytes | None, bytes | None]:
  """Keeps only the segments that decoding the pixels needs.

  Returns:
    (file, EXIF, XMP, ICC profile): the file of those segments, and the metadata
    of the removed segments. Missing metadata is None, as is a profile that is
    too large.

  Raises:
    ValueError: decoding would take too long.
  """
  kept, exif, xmp, profile = [b"\xff\xd8"], b"", None, {}
  for marker, content, position in _segments(data):
    if marker == _END:
      break
    if marker == _SCAN:  # the rest is pixels
      kept.append(data[position:])
      break
    if marker == 0xE1 and content.startswith(b"Exif\0\0"):
      if len(exif) < _MOST_METADATA:
        exif += content[6 * bool(exif) :]
    elif marker == 0xE1 and content.startswith(b"http://ns.adobe.com/xap/1.0/"):
      xmp = xmp or content
    elif marker == 0xE2 and content.startswith(b"ICC_PROFILE\0"):
      profile[content[12:13]] = content[14:]
    # These two define how colours are stored, if they are complete.
    colours = (content[:5] == b"JFIF\0" and len(content) >= 14) or (
      content[:5] == b"Adobe" and len(content) >= 12
    )
    if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or colours:
      kept.append(b"\xff" + bytes([marker]))
      kept.append((len(content) + 2).to_bytes(2) + content)
  found = b"".join(kept)
  if found.count(b"\xff\xda") > _FEW_SCANS:
    _check_scans(found)
  whole = b"".join(profile[number] for number in sorted(profile))
  return (
    found,
    exif or None,
    xmp,
    whole if 0 < len(whole) <= _MOST_METADATA else None,
  )


def _check_scans(data: bytes) -> None:
  """Raises ValueError for so many scans that decoding would take too long.

  The decoder visits all pixels for every scan, however little the scan holds.
  """
  scans, pixels = 0, 0
  for marker, content, _ in _segments(data):
    if marker in _FRAMES and len(content) >= 5:
      height, width = struct.unpack_from(">HH", content, 1)
      pixels = height * width
    scans += marker == _SCAN
  most = min(MOST_SCANS, _MOST_SCANNED // max(1, pixels))
  if scans > max(_FEW_SCANS, most):
    raise ValueError(f"{scans} scans, expected at most {most}")


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
  """Yields the marker, content and position of a JPEG's segments.

  It stops after the first end marker, if there is one.
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
        return  # the file is truncated
    yield marker, content, found.end() - 2
    if marker == _END:
      return


def end(data: bytes) -> list[bytes]:
  """Completes a JPEG that lacks its end marker, in several ways.

  Each file appends different bits to the data. If all files decode to the same
  pixels, no bits of pixels are missing.

  Returns:
    The completed files; none if the end marker is present, or a scan is
    missing.
  """
  markers, left = [], {}  # left: per component, the bits no scan has coded yet
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
  # A decoder that waits for a restart marker finds it, whichever it waits for.
  restarts = [b"\xff" + bytes([0xD0 + i % 8]) for i in range(16)]
  return [
    data + b"".join(fill * 64 + restart for restart in restarts) + b"\xff\xd9"
    for fill in (b"\x00", b"\xff\x00", b"\xa5")
  ]
