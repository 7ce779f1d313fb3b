"""The base stage: text to 64x64 images (App. F.1), 2B parameters.

  python -m imagen_jax.train --config=configs/base_64.py --workdir=DIR
  python -m imagen_jax.compile --config=configs/base_64.py --topology=v4-512

The second command compiles for 256 TPU v4, the paper's number (Sec. 4.1). The
argument is the size of the ablation (App. D.3): 300M, 500M, 1B or 2B.

The sizes have 320M, 568M, 886M and 2.26B parameters. The paper prints the sizes
and the width embed_dim of 2B (App. F.1). Not in the paper: the smaller widths.
They are the multiples of 64 whose sizes come nearest. Of 2.26B parameters, the
layout without text (ADM's) has 2.10B. The rest depends on how text enters,
which the paper does not print. Here T5's outputs are projected once, from 4096
to 4 embed_dim, before they are pooled and attended to.

The training step includes the frozen T5. Override `data` to train on images of
your own. Not in the paper: mesh, bfloat16 and EMA. All that the backward pass
needs fits on 256 TPU v4, v5e or v6e, so remat is "none" (launch/compiled.md).
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from imagen_jax.configs import t5_xxl

EMBED_DIM = {"300M": 192, "500M": 256, "1B": 320, "2B": 512}


def get_config(size: str = "2B") -> ConfigDict:
  """Returns the config of the stage at a size."""
  if size not in EMBED_DIM:
    known = ", ".join(EMBED_DIM)
    raise ValueError(f"base_64.py:{size} is no size, expected {known}")
  embed_dim = EMBED_DIM[size]
  config = ConfigDict()
  config.text = t5_xxl.get_config().text
  config.stage = dict(
    size=64,
    schedule=dict(kind="cosine"),
    prediction="eps",
    text_drop=0.1,
    net=dict(
      kind="UNet",
      image_size=64,
      embed_dim=embed_dim,
      channel_mult=(1, 2, 3, 4),
      num_res_blocks=3,
      attn_resolutions=(32, 16, 8),
      text_cross_attn_res=(32, 16, 8),
      per_head_channels=64,
      feature_pooling_type="attention",
      text_width=4 * embed_dim,
      pool_projected=True,
      remat=("none", "none", "none", "none"),
      scan=True,
      dtype="bfloat16",
    ),
  )
  config.data = dict(
    name="captioned_shapes", data_dir="~/tensorflow_datasets", batch_size=2048
  )
  config.optimizer = dict(
    kind="adafactor",
    learning_rate=1e-4,
    warmup_steps=10_000,
    decay_steps=2_500_000,
  )
  # A save is 20 GB over all hosts; a lost host costs half the steps between.
  config.train = dict(steps=2_500_000, ema_decay=0.9999, checkpoint_every=500)
  config.mesh = dict(data=-1, fsdp=64, tensor=1)
  config.sampling = dict(
    steps=256,
    guidance=5.0,
    grid=dict(kind="time"),
    step=dict(kind="ancestral", gamma=0.0),
    threshold=dict(kind="dynamic", p=99.5),
  )
  config.weights = "runs/base64"
  return config


def sweep() -> Iterator[dict[str, Any]]:
  """Yields the size ablation (App. D.3): 400,000 steps for each size."""
  for width in EMBED_DIM.values():
    yield {
      "stage.net.embed_dim": width,
      "stage.net.text_width": 4 * width,
      "train.steps": 400_000,
    }
