"""The demo's base stage: text to 16x16 images of captioned_shapes.

The net has the layout of App. F.1 in small. Not in the paper: this base stage
predicts x and uses Adam, which a run of two hours needs.

  python -m imagen_jax.train --config=configs/shapes16.py --workdir=DIR
"""

from ml_collections import ConfigDict


def text() -> ConfigDict:
  """Returns the small, frozen T5 that all stages of the demo share.

  It was trained on the captions' text alone, with imagen_jax.pretrain.
  """
  return ConfigDict(
    dict(
      encoder=dict(
        vocab_size=264,
        emb_dim=128,
        num_heads=4,
        num_encoder_layers=3,
        head_dim=32,
        mlp_dim=256,
      ),
      vocabulary="package://weights/shapes.model",
      length=32,
      weights="package://weights/shapes_t5.safetensors",
    )
  )


def get_config() -> ConfigDict:
  """Returns the config of the stage."""
  config = ConfigDict()
  config.text = text()
  config.stage = dict(
    size=16,
    schedule=dict(kind="cosine"),
    prediction="x",
    loss_space="x",
    text_drop=0.1,
    net=dict(
      kind="UNet",
      image_size=16,
      embed_dim=32,
      channel_mult=(1, 2, 4),
      num_res_blocks=2,
      attn_resolutions=(8, 4),
      text_cross_attn_res=(8, 4),
      per_head_channels=32,
      feature_pooling_type="attention",
      text_width=128,
      norm_groups=8,
    ),
  )
  config.data = dict(
    name="captioned_shapes",
    data_dir="~/tensorflow_datasets",
    batch_size=32,
    cache=True,
  )
  config.optimizer = dict(
    kind="adam",
    learning_rate=1e-3,
    warmup_steps=200,
    clip_norm=1.0,
  )
  config.train = dict(
    steps=12_000,
    ema_decay=0.999,
    log_every=50,
    sample_every=1_000,
    checkpoint_every=500,
  )
  config.optimizer.decay_steps = config.train.get_oneway_ref("steps")
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  config.sampling = dict(
    steps=64,
    guidance=2.0,
    grid=dict(kind="time"),
    step=dict(kind="ancestral", gamma=0.0),
    threshold=dict(kind="dynamic", p=99.5),
  )
  config.weights = "package://weights/shapes16.safetensors"
  return config
