"""Blind side-by-side comparison of two models, as one self-contained page.

The paper's protocol (Sec. 3, App. C): images of two models for one prompt, and
two questions with three answers each.
"""

import base64
import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from imagen_jax import files
from imagen_jax.evals.suites import Entry

TEMPLATE = pathlib.Path(__file__).with_name("comparison.html")
SIZE = 512  # pixels; larger images are downsampled on the page
_LOSSLESS = 128  # pixels; larger images are JPEG
Rendered = list[tuple[Entry, list[epath.Path]]]  # as suites.read_geneval


def pair(
  first: Rendered, second: Rendered
) -> list[tuple[Entry, list[epath.Path], list[epath.Path]]]:
  """Pairs two models' images, as many of each model for a prompt.

  Raises:
    ValueError: the models have images of other prompts.
  """
  if len(first) != len(second):
    raise ValueError(
      f"the models have images of {len(first)} and {len(second)} prompts,"
      " expected those of one suite"
    )
  found = []
  for number, ((entry, ours), (other, theirs)) in enumerate(
    zip(first, second, strict=True)
  ):
    if entry.prompt != other.prompt:
      raise ValueError(
        f"prompt {number} of the models is {files.quote(entry.prompt)} and"
        f" {files.quote(other.prompt)}, expected one suite"
      )
    count = min(len(ours), len(theirs))
    found.append((entry, ours[:count], theirs[:count]))
  return found


def page(
  first: Rendered,
  second: Rendered,
  names: tuple[str, str],
  *,
  title: str,
  seed: int = 0,
) -> str:
  """Returns the page as HTML.

  The order of prompts and the sides of the models are random. The page needs no
  network. It keeps votes over a reload, and saves them as JSON with intervals
  of 95 % (Wilson).

  Args:
    first: the first model's images.
    second: the second model's images.
    names: the models' names, which the page does not show before the end.
    title: the suite's name.
    seed: of the order and the sides.

  Raises:
    ValueError: the models have images of other prompts, or an image cannot be
      read.
  """
  rng = np.random.default_rng(seed)
  pairs = pair(first, second)
  items = []
  for number in rng.permutation(len(pairs)).tolist():
    entry, *sides = pairs[number]
    swapped = bool(rng.integers(2))
    left, right = sides[::-1] if swapped else sides
    items.append(
      {
        "number": number,
        "category": entry.category,
        "prompt": entry.prompt,
        "swapped": swapped,
        "left": [_data_uri(path) for path in left],
        "right": [_data_uri(path) for path in right],
      }
    )
  data: dict[str, Any] = {
    "title": title,
    "names": names,
    "seed": seed,
    "items": items,
  }
  text = json.dumps(data)
  data["id"] = hashlib.sha256(text.encode()).hexdigest()[:16]
  # "<" would let a prompt end the script.
  text = json.dumps(data).replace("<", "\\u003c")
  return TEMPLATE.read_text("utf-8").replace("@DATA@", text)


def _data_uri(path: epath.Path) -> str:
  """Encodes an image for the page.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    with path.open("rb") as file, Image.open(file, formats=["PNG"]) as opened:
      image = opened.convert("RGB")
  except Exception as error:  # stores and PIL raise many kinds
    raise ValueError(
      f"image {path} cannot be read: {files.reason(error)}"
    ) from error
  image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
  small = max(image.size) <= _LOSSLESS
  data = io.BytesIO()
  if small:
    image.save(data, "png")
  else:
    image.save(data, "jpeg", quality=95, subsampling=0)
  kind = "png" if small else "jpeg"
  return f"data:image/{kind};base64," + base64.b64encode(
    data.getvalue()
  ).decode("ascii")
