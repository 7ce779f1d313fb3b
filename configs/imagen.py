"""Imagen: text -> 64x64 -> 256x256 -> 1024x1024, at the paper's sizes.

  python -m imagen_jax.sample --config=configs/imagen.py --prompt="a corgi"
  python -m imagen_jax.compile --config=configs/imagen.py --topology=v5e-8

The argument chooses the sampling: `looks`, guidance and augmentation as in the
paper's good-looking samples (App. D.2, Figs. A.10, A.12), or `fid`, those of
its COCO FID at 256x256 (Table 1: guidance 1.35 and 8; App. D.2: no
augmentation), without the last stage. The numbers of steps are ours but for
the last stage's.
"""

from ml_collections import ConfigDict

from imagen_jax.configs import base_64, sr256, sr1024

MODULES = {"base64": base_64, "sr256": sr256, "sr1024": sr1024}
SAMPLING = {
  "looks": {
    "base64": dict(guidance=5.0),
    "sr256": dict(guidance=5.0, aug_level=0.2),
    "sr1024": dict(guidance=5.0, aug_level=0.2),
  },
  "fid": {
    "base64": dict(guidance=1.35),
    "sr256": dict(guidance=8.0, aug_level=0.0),
  },
}


def get_config(settings: str = "looks") -> ConfigDict:
  """Stages by name, from small to large, and the text encoder they share."""
  if settings not in SAMPLING:
    known = ", ".join(SAMPLING)
    raise ValueError(f"imagen.py:{settings} is unknown, expected {known}")
  config = ConfigDict()
  config.stages = tuple(SAMPLING[settings])
  for name, changes in SAMPLING[settings].items():
    stage = MODULES[name].get_config()
    stage.sampling.update(changes)
    keys = ("stage", "sampling", "weights")
    config[name] = {key: stage[key] for key in keys}
  config.text = stage.text
  config.batch_size = 1
  config.mesh = dict(data=1, fsdp=1, tensor=-1)
  return config
