"""The first super-resolution stage: 64x64 to 256x256 images (App. F.2).

  python -m imagen_jax.train --config=configs/sr256.py --workdir=DIR
  python -m imagen_jax.compile --config=configs/sr256.py --topology=v4-256

The second command compiles for 128 TPU v4, the paper's number (Sec. 4.1). The
net has 584M parameters. The paper states 600M, perhaps rounded, or with a wider
embedding, whose width it does not print.

Not in the paper: mesh, remat, bfloat16, EMA, the width of the embedding, and
the sampling's numbers except aug_level, which lies within 0.1 to 0.3. App. D.2
uses these levels for its best samples. Images smaller than 256 pixels are left
out (docs/input.md).
"""

from typing import Any

from ml_collections import ConfigDict

from imagen_jax.configs import base_64


def block(**settings: Any) -> dict[str, Any]:
  """Returns a row of App. F.2's `blocks`, including the shared settings."""
  shared = dict(strides=(2, 2), kernel_size=(3, 3), remat="none")
  return shared | settings


def get_config() -> ConfigDict:
  """Returns the config of the stage."""
  config = base_64.get_config()
  config.stage = dict(
    size=256,
    lowres_size=64,
    schedule=dict(kind="cosine"),
    prediction="eps",
    text_drop=0.1,
    net=dict(
      kind="EfficientUNet",
      blocks=(
        block(channels=128, num_res_blocks=2),
        block(channels=256, num_res_blocks=4),
        block(channels=512, num_res_blocks=8),
        block(
          channels=1024,
          num_res_blocks=8,
          self_attention=True,
          text_cross_attention=True,
          num_attention_heads=8,
        ),
      ),
      embed_dim=128,
      feature_pooling_type="attention",
      text_width=1024,
      scan=True,
      dtype="bfloat16",
    ),
  )
  # Not in the paper: an upsampled image has no detail to learn from.
  config.data.least_side = config.stage.get_oneway_ref("size")
  config.optimizer = dict(
    kind="adam",
    learning_rate=1e-4,
    b1=0.9,
    b2=0.999,
    warmup_steps=10_000,
    decay_steps=2_500_000,
  )
  config.mesh = dict(data=-1, fsdp=16, tensor=1)
  config.sampling = dict(
    steps=128,
    guidance=5.0,
    grid=dict(kind="time"),
    step=dict(kind="ancestral", gamma=0.0),
    threshold=dict(kind="dynamic", p=99.5),
    aug_level=0.2,
  )
  config.weights = "runs/sr256"
  return config
