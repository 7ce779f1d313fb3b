"""T5 v1.1, the text encoder (Secs. 2.1, 4.4): the paper's XXL, or smaller.

  python -m imagen_jax.compile --config=configs/t5_xxl.py --topology=v5e-8
  python -m imagen_jax.compile --config=configs/t5_xxl.py:large --topology=v5e-1

The argument is the size: small, base, large, xl or xxl. The paper counts 4.6B
parameters. XXL has 4.76B here, 4.63B of them outside the vocabulary's table.
Not in the paper: 128 tokens, a number that it does not state. Vocabulary and
weights are the published ones of T5, which the paths must name. README.md has a
command that downloads T5 base.
"""

from ml_collections import ConfigDict

SIZES = {
  # emb_dim, num_heads, num_encoder_layers, mlp_dim
  "small": (512, 6, 8, 1024),
  "base": (768, 12, 12, 2048),
  "large": (1024, 16, 24, 2816),
  "xl": (2048, 32, 24, 5120),
  "xxl": (4096, 64, 24, 10240),
}


def get_config(size: str = "xxl") -> ConfigDict:
  """Returns the encoder of a size, sharded over the mesh's tensor axis."""
  if size not in SIZES:
    known = ", ".join(SIZES)
    raise ValueError(f"t5_xxl.py:{size} is no size of T5, expected {known}")
  emb_dim, num_heads, num_encoder_layers, mlp_dim = SIZES[size]
  config = ConfigDict()
  config.text = dict(
    encoder=dict(
      vocab_size=32_128,
      emb_dim=emb_dim,
      num_heads=num_heads,
      num_encoder_layers=num_encoder_layers,
      mlp_dim=mlp_dim,
      head_dim=64,
      scan=True,
      dtype="bfloat16",
    ),
    vocabulary="t5/sentencepiece.model",
    length=128,
    weights=f"t5/t5_v1_1_{size}.safetensors",
    batch_size=64,
  )
  config.mesh = dict(data=1, fsdp=1, tensor=-1)
  return config
