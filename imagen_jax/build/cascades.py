"""The cascade that a config describes, and the devices it samples on."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagen_jax.build.diffusion import sampling, stage
from imagen_jax.build.keys import as_tuple, check_names, fits, section
from imagen_jax.build.nets import text
from imagen_jax.build.runs import check_keys, mesh
from imagen_jax.cascade import Cascade
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.training.setup import check_guidance

_SHARDED = ({"tensor": "channels"}, {"tensor": "height"})


def cascade(config: Mapping[str, Any]) -> Cascade:
  """Returns the cascade that a config describes.

  Args:
    config: a config whose `stages` names the sub-configs of stages.

  Raises:
    ValueError: a key is unknown or missing, or a value does not fit.
  """
  names = as_tuple(section(config, "of a cascade").get("stages"))
  if not fits(names, tuple[str, ...]):
    raise ValueError(
      "config key stages is missing, expected a cascade's config, such as "
      "configs/shapes.py"
    )
  keys = ("stages", "text", "batch_size", *names)
  check_names(config, "", keys, optional=("mesh",))
  for name in names:
    keys = ("stage", "sampling", "weights")
    check_names(config[name], f"{name}.", keys, optional=("mesh",))
  if not fits(config["batch_size"], int) or config["batch_size"] < 1:
    raise ValueError(
      f"config batch_size is {config['batch_size']!r}, expected at least 1"
    )
  cascade = Cascade(
    names,
    tuple(stage(config[n]["stage"], f"{n}.stage") for n in names),
    tuple(sampling(config[n]["sampling"], f"{n}.sampling") for n in names),
  )
  for name, settings in zip(names, cascade.samplings, strict=True):
    try:
      check_guidance(text(config["text"]), settings)
    except ValueError as error:
      raise ValueError(f"stage {name}: {error}") from error
  return cascade


def as_cascade(config: ConfigDict) -> ConfigDict:
  """Returns a cascade of one stage, "stage", for a stage's config.

  A cascade's config stays as it is.
  """
  if "stages" in config or "stage" not in config:
    return config
  check_keys(config)
  parts = ("stage", "sampling", "weights")
  found = ConfigDict(
    {
      "stages": ("stage",),
      "stage": {key: config[key] for key in parts},
      "text": config.text,
      "batch_size": config.data.batch_size,
    }
  )
  if "mesh" in config:
    found.mesh = config.mesh
  return found


def height_stages(config: Mapping[str, Any], devices: Mesh) -> tuple[str, ...]:
  """Returns the stages in which the tensor axis shards the height of images.

  They have mesh.tensor "height". The default is "channels".

  Raises:
    ValueError: a stage's mesh is anything else, or the devices along tensor do
      not divide the height.
  """
  found, ways = [], devices.shape["tensor"]
  for name in as_tuple(config["stages"]):
    given = config[name].get("mesh", {"tensor": "channels"})
    given = dict(given) if hasattr(given, "items") else given
    if given not in _SHARDED:
      raise ValueError(
        f"config {name}.mesh is {given!r}, expected tensor='channels' or "
        "tensor='height', what the tensor axis shards in this stage"
      )
    if given["tensor"] == "height" and ways > 1:
      size = config[name]["stage"]["size"]
      if size % ways:
        raise ValueError(
          f"config {name}.mesh.tensor is 'height', of {size} pixels, expected "
          f"mesh.tensor to divide them, not {ways}"
        )
      found.append(name)
  return tuple(found)


def sampling_devices(
  config: Mapping[str, Any], devices: Sequence[Any] | None = None
) -> Mesh:
  """Returns the mesh of a cascade's config over all or given devices.

  Without a mesh in the config, a batch is sharded over all devices of one
  process.

  Raises:
    ValueError: there are many processes, but no mesh in the config.
  """
  if "mesh" not in config and jax.process_count() > 1:
    raise ValueError("the config has no mesh, expected one of all processes")
  return make_mesh(mesh(config), devices)
