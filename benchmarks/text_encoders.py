"""Prints what the embeddings of a million captions cost, by encoder.

  python benchmarks/text_encoders.py --tokens=30

Operations are counted in the traced programs, so no weights are needed. A
caption is padded to the bucket of imagen_jax.embed; in training it is padded to
text.length. Time is that of one TPU v4 chip at 40 % of its peak.
"""

import argparse

import jax
import jax.numpy as jnp

from imagen_jax import build
from imagen_jax.build.configs import read_config
from imagen_jax.parallel.flops import count_flops
from imagen_jax.text.buckets import buckets

ENCODERS = (
  *(f"t5_xxl:{size}" for size in ("small", "base", "large", "xl", "xxl")),
  "bert:base",
  "bert:large",
  "clip_l14",
)
CHIP = 0.4 * 275e12  # operations per second


def flops(text, length: int) -> int:
  """Counts the operations of encoding one caption."""
  shape = lambda dtype: jax.ShapeDtypeStruct((1, length), dtype)
  return count_flops(
    text.embedder.__call__, text.shapes(), shape(jnp.int32), shape(jnp.bool_)
  )


def main() -> None:
  """Prints a row for each encoder."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tokens", type=int, default=30, help="of a caption")
  tokens = parser.parse_args().tokens
  print(
    "| encoder | width | bucket | GB in bfloat16 | GB in int8 | GFLOP |"
    " chip-hours | GFLOP in training |\n|---|---|---|---|---|---|---|---|"
  )
  for name in ENCODERS:
    text = build.text(read_config(name).text)
    bucket = min(n for n in buckets(text.length) if n >= tokens)
    once, online = flops(text, bucket), flops(text, text.length)
    print(
      f"| {name} | {text.dim} | {bucket} | {2e-3 * tokens * text.dim:,.0f} |"
      f" {1e-3 * tokens * (text.dim + 4):,.0f} | {once / 1e9:,.1f} |"
      f" {1e6 * once / CHIP / 3600:,.3f} | {online / 1e9:,.1f} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
