"""Imagen: text -> 64x64 -> 256x256 -> 1024x1024, at the paper's sizes.

  python -m imagen_jax.sample --config=configs/imagen.py --prompt="a corgi"
  python -m imagen_jax.compile --config=configs/imagen.py --topology=v5e-8

Many images are sampled at a time, one on each device, which holds all nets. For
a single image at low latency, all devices work on it by

  --config.mesh.data=1 --config.mesh.tensor=-1

The tensor axis then shards channels, and in the last stage the height of the
images, which moves a thirtieth of the bytes (docs/sampling.md).

The argument chooses the sampling. `looks` is for good-looking samples. Its
guidance 5 at 64 and 256 is from Fig. A.10. Its aug_level 0.2 lies within 0.1 to
0.3, which App. D.2 uses for its best samples (Fig. A.12 has 0.3). `fid` is the
sampling of the COCO FID at 256x256, without the last stage: guidance 1.35 and 8
(Table 1), no augmentation (App. D.2).

Not in the paper: the numbers of steps, gamma, and guidance 5 at 1024, for which
it states only that large weights are used. Azizi et al. 2023 (arXiv:2304.08466)
name DDIM with 32 steps for Imagen's last stage.
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
  """Returns the stages, from small to large, and their shared text encoder."""
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
  if "sr1024" in config.stages:
    config.sr1024.mesh = dict(tensor="height")
  config.batch_size = 1
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  return config
