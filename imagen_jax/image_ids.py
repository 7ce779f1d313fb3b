"""Image ids: checksums of all that an image is made from.

An id names an image's file and finds it again.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from imagen_jax.request import Request


def image_ids(request: Request, settings: Mapping[str, str]) -> tuple[str, ...]:
  """Returns a checksum for each row of all that its image is made from.

  Batch size, mesh and the path of the weights do not change it.

  Args:
    request: the images.
    settings: their Samples.settings.
  """
  shared = dict(settings)
  if "config" in shared:
    shared["config"] = _what_matters(json.loads(shared["config"]))
  shared["samplings"] = [repr(request.samplings[i]) for i in request.stages]
  shared["stages"] = list(request.stages)
  ids = []
  for row in request.rows:
    arrays = jax.tree.leaves((request.text, request.lowres))
    made_from = {
      "prompt": request.prompts and request.prompts[row.prompt],
      "negative": request.negative and request.negative[row.prompt],
      "seed": row.seed,
      "index": row.index,
      "arrays": [_digest(np.asarray(a[row.prompt]).tobytes()) for a in arrays],
      **shared,
    }
    ids.append(_digest(json.dumps(made_from, sort_keys=True).encode()))
  return tuple(ids)


def _what_matters(config: Any) -> Any:
  """Returns a config without the keys that cannot change an image."""
  if not isinstance(config, dict):
    return config
  left_out = ("batch_size", "mesh", "weights", "vocabulary", "folder")
  return {k: _what_matters(v) for k, v in config.items() if k not in left_out}


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()
