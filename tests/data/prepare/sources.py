"""Small sources of every format, with the same records."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet


def encode(seed=0, size=(12, 10), mode="RGB", kind="png", **options):
  """Returns an image file of random pixels."""
  shape = (size[1], size[0], 4)
  pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
  file = io.BytesIO()
  image = Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode)
  if mode in ("RGBA", "LA"):
    image.putalpha(Image.fromarray(pixels[..., 3]))
  image.save(file, kind, **options)
  return file.getvalue()


def write_folder(folder, count, metadata=None):
  """Writes images with texts, or with a metadata file of one format."""
  folder.mkdir(parents=True)
  rows = []
  for i in range(count):
    (folder / f"{i:03}.png").write_bytes(encode(i))
    rows.append({"file_name": f"{i:03}.png", "text": f"number {i}"})
    if metadata is None:
      (folder / f"{i:03}.txt").write_text(f"number {i}\n")
  write_metadata(folder, rows, metadata)
  return folder


def write_metadata(folder, rows, metadata):
  """Writes rows as metadata.jsonl, .csv or .parquet."""
  path = folder / f"metadata.{metadata}"
  if metadata == "jsonl":
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  elif metadata == "csv":
    with open(path, "w", newline="") as file:
      table = csv.DictWriter(file, rows[0])
      table.writeheader()
      table.writerows(rows)
  elif metadata == "parquet":
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_tar(path, members):
  """Writes a tar of (name, bytes)."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as tar:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
