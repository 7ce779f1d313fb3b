"""TFRecord files, read without TensorFlow.

A record is its length in 8 bytes, a checksum of these, its data and a checksum
of them. The checksums are masked CRC-32C.
"""

import functools
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from imagen_jax.data.records import MOST_BYTES

_POLYNOMIAL = 0x82F63B78  # of CRC-32C, its bits reversed
_BLOCK = 4096  # bytes of which the checksum is computed at once
_MASK = 0xA282EAD8


class Damaged(ValueError):
  """Explains why the rest of a file cannot be read."""


def read_records(file: BinaryIO) -> Iterator[bytes | str]:
  """Yields the records of a file; a str explains why a record is not read.

  Raises:
    Damaged: a checksum is wrong, or the file ends within a record.
  """
  while head := file.read(12):
    if len(head) < 12:
      raise Damaged("the file ends within a record")
    length, checksum = struct.unpack("<QI", head)
    if masked_crc(head[:8]) != checksum:
      raise Damaged("the checksum of a record's length is wrong")
    if length > MOST_BYTES:
      yield f"record has {length:,} bytes, expected at most {MOST_BYTES:,}"
      file.seek(length + 4, 1)
      continue
    data, tail = file.read(length), file.read(4)
    if len(data) < length or len(tail) < 4:
      raise Damaged("the file ends within a record")
    if masked_crc(data) != struct.unpack("<I", tail)[0]:
      raise Damaged("the checksum of a record is wrong")
    yield data


def masked_crc(data: bytes) -> int:
  """Returns the checksum of bytes as TFRecord files store it."""
  crc = crc32c(data)
  return ((crc >> 15 | crc << 17) + _MASK) % 2**32


def crc32c(data: bytes) -> int:
  """Returns the CRC-32C of bytes.

  It is linear: a block's checksum is the exclusive or of what each byte
  contributes by its distance from the block's end. The checksum so far is added
  to the block's first four bytes.
  """
  crc, table = 0xFFFFFFFF, _table()
  for start in range(0, len(data), _BLOCK):
    block = np.frombuffer(data[start : start + _BLOCK], np.uint8).copy()
    count = min(4, len(block))
    block[:count] ^= np.frombuffer(struct.pack("<I", crc), np.uint8)[:count]
    each = table[_BLOCK - len(block) + np.arange(len(block)), block]
    crc = int(np.bitwise_xor.reduce(each)) ^ (crc >> 8 * count)
  return crc ^ 0xFFFFFFFF


@functools.cache
def _table() -> np.ndarray:
  """Returns uint32 [_BLOCK, 256]: what a byte at each place contributes."""
  last = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    last = np.where(last & 1, last >> 1 ^ np.uint32(_POLYNOMIAL), last >> 1)
  table = np.empty((_BLOCK, 256), np.uint32)
  table[-1] = last
  for i in range(_BLOCK - 2, -1, -1):
    table[i] = table[i + 1] >> 8 ^ last[table[i + 1] & 255]
  return table
