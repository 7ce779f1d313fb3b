"""BERT (Devlin et al. 2018), a text encoder that App. D.1 compares with T5.

  python -m imagen_jax.compile --config=configs/bert.py --topology=v5e-1
  python -m imagen_jax.compile --config=configs/bert.py:large --topology=v5e-1

The argument is the size: base or large. Without the pooler they have 109M and
334M parameters. Not in the paper: the uncased vocabulary. Weights and
vocabulary are the published ones of Hugging Face's bert-base-uncased and
bert-large-uncased; docs/text.md shows how a stage trains with them.
"""

from ml_collections import ConfigDict

SIZES = {
  # emb_dim, num_heads, num_encoder_layers, mlp_dim
  "base": (768, 12, 12, 3072),
  "large": (1024, 16, 24, 4096),
}


def get_config(size: str = "base") -> ConfigDict:
  """Returns the encoder of a size."""
  if size not in SIZES:
    known = ", ".join(SIZES)
    raise ValueError(f"bert.py:{size} is no size of BERT, expected {known}")
  emb_dim, num_heads, num_encoder_layers, mlp_dim = SIZES[size]
  repository = f"hf://google-bert/bert-{size}-uncased"
  config = ConfigDict()
  config.text = dict(
    kind="bert",
    encoder=dict(
      vocab_size=30_522,
      emb_dim=emb_dim,
      num_heads=num_heads,
      num_encoder_layers=num_encoder_layers,
      mlp_dim=mlp_dim,
      scan=True,
      dtype="bfloat16",
    ),
    vocabulary=f"{repository}/tokenizer.json",
    length=128,
    weights=f"{repository}/model.safetensors",
    batch_size=64,
  )
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  return config
