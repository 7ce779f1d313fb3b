"""The demo's first super-resolution stage: 16x16 to 64x64 images.

The net is an Efficient U-Net after App. F.2 in small: self-attention with the
text's keys and values in the last block. Not in the paper: it predicts x,
because a net this narrow has better uses for its channels than to carry each
pixel's noise. Not in the paper: it trains on low-resolution images at aug_level
0 to 0.3 only, which includes the level of its sampling.

  python -m imagen_jax.train --config=configs/shapes64.py --workdir=DIR
"""

from ml_collections import ConfigDict

from imagen_jax.configs import shapes16


def get_config() -> ConfigDict:
  """Returns the config of the stage."""
  config = shapes16.get_config()
  config.stage = dict(
    size=64,
    lowres_size=16,
    schedule=dict(kind="cosine"),
    prediction="x",
    loss_space="x",
    text_drop=0.1,
    max_aug_level=0.3,
    net=dict(
      kind="EfficientUNet",
      blocks=(
        dict(channels=32, num_res_blocks=1),
        dict(channels=64, num_res_blocks=1),
        dict(
          channels=128,
          num_res_blocks=2,
          self_attention=True,
          text_cross_attention=True,
          num_attention_heads=8,
        ),
      ),
      embed_dim=64,
      feature_pooling_type="attention",
      text_width=128,
      norm_groups=8,
    ),
  )
  config.data.batch_size = 16
  config.train.steps = 8_000
  config.sampling = dict(
    steps=32,
    guidance=3.0,
    grid=dict(kind="time"),
    step=dict(kind="ddim"),
    threshold=dict(kind="static"),
    aug_level=0.15,
  )
  config.weights = "package://weights/shapes64.safetensors"
  return config
