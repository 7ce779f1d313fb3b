"""The second super-resolution stage: 256x256 to 1024x1024 (App. F.3).

It trains on crops, 64x64 to 256x256 (Sec. 2.5), with the linear schedule and
without self-attention. Images smaller than 1024 pixels are left out, as in
sr256. Not in the paper: DDIM with 32 steps. The paper states
that DDIM samples "certain models" (App. A). Azizi et al. 2023
(arXiv:2304.08466) name it, with these steps, for Imagen's last stage.

  python -m imagen_jax.train --config=configs/sr1024.py --workdir=DIR
  python -m imagen_jax.compile --config=configs/sr1024.py --topology=v4-256

The second command compiles for 128 TPU v4, the paper's number (Sec. 4.1). The
net has 575M parameters. The paper states 400M, which its table does not give:
the net differs from the previous stage's by self-attention alone, and is nearly
as large.
"""

from ml_collections import ConfigDict

from imagen_jax.configs import sr256


def get_config() -> ConfigDict:
  """Returns the config of the stage."""
  config = sr256.get_config()
  config.stage.size = 1024
  config.stage.lowres_size = 256
  config.stage.crop_size = 256
  config.stage.schedule.kind = "linear"
  *blocks, last = config.stage.net.blocks
  config.stage.net.blocks = (*blocks, last | {"self_attention": False})
  config.sampling.steps = 32
  config.sampling.step = dict(kind="ddim")
  config.weights = "runs/sr1024"
  return config
