"""The demo's last stage: 64x64 to 256x256 images, trained on crops.

The net is an Efficient U-Net after App. F.3 in small: no self-attention, a
cross-attention to the text alone in the last block, and the linear schedule.
It trains on 64x64 crops of 256x256 images and upsamples full images, as the
paper's last stage does (Sec. 2.5). Not in the paper: like shapes64 it predicts
x and trains on low-resolution images at aug_level 0 to 0.3.

  python -m imagen_jax.train --config=configs/shapes256.py --workdir=DIR
"""

from ml_collections import ConfigDict

from imagen_jax.configs import shapes64


def get_config() -> ConfigDict:
  """Returns the config of the stage."""
  config = shapes64.get_config()
  config.stage.size = 256
  config.stage.lowres_size = 64
  config.stage.crop_size = 64
  config.stage.schedule.kind = "linear"
  config.stage.net.blocks = (
    dict(channels=24, num_res_blocks=1),
    dict(channels=48, num_res_blocks=1),
    dict(
      channels=96,
      num_res_blocks=1,
      text_cross_attention=True,
      num_attention_heads=8,
    ),
  )
  config.data.cache = False
  config.train.steps = 4_500
  config.sampling.update(steps=16, guidance=1.0, aug_level=0.1)
  config.weights = "package://weights/shapes256.safetensors"
  return config
