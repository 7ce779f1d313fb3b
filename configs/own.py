r"""A base stage of moderate size for images of your own: text to 64x64 images.

  python -m imagen_jax.prepare --source=FOLDER --output=DATA
  python -m imagen_jax.train --config=configs/own.py --config.data.name=DATA \
    --workdir=RUN

The net has the layout of App. F.1 in small, with 110M parameters. Its text
encoder is T5 v1.1 base, which is downloaded from the Hugging Face Hub once
(1 GB). Without a network, copy the two files from a machine that has one, and
pass their paths:

  --config.text.weights=PATH --config.text.vocabulary=PATH

--config=configs/own.py:shipped takes the encoder of the demo, which is part of
the package. It knows the demo's few words, and spells other words by letters.
It suits trials and captions of few words. --config=configs/own.py:none trains a
net without text.

Not in the paper: all numbers here. They are for some 10,000 to 1,000,000 images
on one GPU or eight TPU cores. For more images, use configs/base_64.py.
"""

from ml_collections import ConfigDict

from imagen_jax.configs import base_64, shapes16, t5_xxl

HUB = "hf://google/t5-v1_1-base"


def get_config(text: str = "t5") -> ConfigDict:
  """Returns the config of the stage, with a text encoder or none."""
  if text not in ("t5", "shipped", "none"):
    raise ValueError(f"own.py:{text} is unknown, expected t5, shipped or none")
  config = base_64.get_config("300M")
  if text == "shipped":
    config.text = shapes16.text()
    config.text.length = 128
  elif text == "none":
    config.text = None
    config.sampling.guidance = 1.0
  else:
    config.text = t5_xxl.get_config("base").text
    config.text.weights = f"{HUB}@refs/pr/1"  # its safetensors
    config.text.vocabulary = f"{HUB}/spiece.model"
  config.stage.net.update(embed_dim=128, num_res_blocks=2, text_width=512)
  config.data = dict(
    name="DATA",  # --config.data.name: what prepare has written
    data_dir="~/tensorflow_datasets",
    batch_size=64,
  )
  config.optimizer = dict(
    kind="adam",
    learning_rate=1e-4,
    warmup_steps=1_000,
    clip_norm=1.0,
  )
  config.train = dict(
    steps=200_000,
    ema_decay=0.9999,
    sample_every=2_000,
    validate_every=2_000,
    checkpoint_every=1_000,
  )
  config.optimizer.decay_steps = config.train.get_oneway_ref("steps")
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.sampling.steps = 64  # of sample grids
  config.weights = "runs/own"
  return config
