r"""Training with DeepFloyd IF's text encoder: tunes a net of IF, or adds one.

  python -m imagen_jax.train --config=configs/deepfloyd_if_train.py:if1,xl \
    --workdir=DIR --config.data.name=MINE

The argument is if1 or if2 with a size, or sr1024. if1 and if2 start from the
published weights (configs/deepfloyd_if.py names their licence). sr1024, the
paper's last stage for 256x256 images of IF, starts from random weights. To
sample from trained weights, pass --config.if1.weights=DIR with
configs/deepfloyd_if.py. if1 and if2 keep their learned variance, trained by the
hybrid loss. To train without it, pass --config.stage.net.out_channels=3 and
--config.sampling.step.kind=ancestral. Not in the paper: the optimizer's numbers
and the mesh, which are for 8 chips of 32 GiB.
"""

from ml_collections import ConfigDict

from imagen_jax.configs import base_64, deepfloyd_if, sr1024


def get_config(net: str = "if1,xl") -> ConfigDict:
  """Returns the training config of a net."""
  name, _, size = net.partition(",")
  if name == "sr1024" and not size:
    config = sr1024.get_config()
    config.text = deepfloyd_if.get_config().text
    return config
  if name not in ("if1", "if2") or size not in deepfloyd_if.SIZES[name]:
    raise ValueError(
      f"deepfloyd_if_train.py:{net} is unknown, expected sr1024, or if1 or if2 "
      "and a size, such as if1,xl"
    )
  sizes = f"{size},l" if name == "if1" else f"xl,{size}"
  published = deepfloyd_if.get_config(sizes)
  config = base_64.get_config()
  config.stage = published[name].stage
  config.sampling = published[name].sampling
  config.text = published.text
  config.data.batch_size = 64
  if name == "if2":  # as in configs/sr256.py
    config.data.least_side = config.stage.get_oneway_ref("size")
  config.optimizer = dict(
    kind="adam",
    learning_rate=1e-5,
    warmup_steps=100,
    decay_steps=10_000,
    clip_norm=1.0,
  )
  config.train = dict(
    steps=10_000,
    ema_decay=0.999,
    sample_every=1_000,
    checkpoint_every=1_000,
    start_from=published[name].weights,
  )
  config.mesh = dict(data=-1, fsdp=8, tensor=1)
  config.weights = f"runs/{name}"
  return config
