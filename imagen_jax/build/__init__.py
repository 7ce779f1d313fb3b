"""Objects from configs; the only package that reads a ConfigDict.

A sub-config's keys are the fields of the dataclass that it describes, which
also holds the defaults. A key or value that does not fit raises an error that
names both.
"""

from imagen_jax.build.cascades import (
  as_cascade,
  cascade,
  height_stages,
  sampling_devices,
)
from imagen_jax.build.defaults import as_json
from imagen_jax.build.diffusion import (
  SAMPLERS,
  THRESHOLDS,
  sampling,
  stage,
)
from imagen_jax.build.nets import net, required_text, text
from imagen_jax.build.runs import (
  STAGE_KEYS,
  check_keys,
  data,
  mesh,
  optimizer,
  run,
  training,
)
from imagen_jax.build.weights import (
  check_files,
  check_net,
  identity,
  load_encoder,
  load_net,
  move_weights,
  net_placement,
  replace_weights,
  sampling_shapes,
  text_placement,
)
from imagen_jax.interop.published import (
  check_text,
  load_text,
  text_encoder,
  tokenizer,
)
from imagen_jax.training.setup import init_net

__all__ = [
  "SAMPLERS",
  "STAGE_KEYS",
  "THRESHOLDS",
  "as_cascade",
  "as_json",
  "cascade",
  "check_files",
  "check_keys",
  "check_net",
  "check_text",
  "data",
  "height_stages",
  "identity",
  "init_net",
  "load_encoder",
  "load_net",
  "load_text",
  "mesh",
  "move_weights",
  "net",
  "net_placement",
  "optimizer",
  "replace_weights",
  "required_text",
  "run",
  "sampling",
  "sampling_devices",
  "sampling_shapes",
  "stage",
  "text",
  "text_encoder",
  "text_placement",
  "tokenizer",
  "training",
]
