"""The text tower of CLIP ViT-L/14, which App. D.1 compares with T5.

  python -m imagen_jax.compile --config=configs/clip_l14.py --topology=v5e-1

Its penultimate layer is read, as in App. D.1: 11 of 12 layers run, and they
have 116M parameters with the tables. Weights and vocabulary are OpenAI's, as
published on the Hub; docs/text.md shows how a stage trains with them.
"""

from ml_collections import ConfigDict

REPOSITORY = "hf://openai/clip-vit-large-patch14"


def get_config() -> ConfigDict:
  """Returns the encoder, which takes at most 77 tokens."""
  config = ConfigDict()
  config.text = dict(
    kind="clip",
    encoder=dict(
      vocab_size=49_408,
      emb_dim=768,
      num_heads=12,
      num_encoder_layers=12,
      mlp_dim=3072,
      scan=True,
      dtype="bfloat16",
    ),
    vocabulary=f"{REPOSITORY}/tokenizer.json",
    length=77,
    weights=f"{REPOSITORY}/model.safetensors",
    batch_size=64,
  )
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  return config
