"""The demo's cascade, text -> 16x16 -> 64x64 -> 256x256.

The weights come with the package, so this command needs no training:

  python -m imagen_jax.sample --config=configs/shapes.py \
    --prompt="two red circles above a blue square on a yellow background"
"""

from ml_collections import ConfigDict

from imagen_jax.configs import shapes16, shapes64, shapes256


def get_config() -> ConfigDict:
  """Returns the stages, from small to large, and their shared text encoder."""
  config = ConfigDict()
  config.stages = ("shapes16", "shapes64", "shapes256")
  for name, module in zip(
    config.stages, (shapes16, shapes64, shapes256), strict=True
  ):
    stage = module.get_config()
    keys = ("stage", "sampling", "weights")
    config[name] = {key: stage[key] for key in keys}
  config.text = stage.text
  config.batch_size = 4
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  return config
