"""Makes t5_v1_1.safetensors with transformers' T5EncoderModel.

  python tests/oracles/make_t5_fixture.py

Needs torch and transformers. The weights come from a numpy seed, under the
names and in the shapes of t5x, and are mapped to those of Hugging Face here,
so that the map between the two is part of what the fixture pins.

The sizes are chosen to show mix-ups: no two widths are equal, heads * d_kv is
not d_model, norm scales are far from one.
"""

import pathlib

import numpy as np
import safetensors.numpy

PATH = pathlib.Path(__file__).with_name("t5_v1_1.safetensors")
SIZES = dict(
  vocab_size=96,
  emb_dim=40,
  num_heads=4,
  num_encoder_layers=3,
  head_dim=12,
  mlp_dim=56,
)
BUCKETS = 32
# Real tokens of each row, the last of them </s>; 1 is the empty prompt. The
# long input reaches the buckets of keys more than 128 positions away.
INPUTS = {"short": (77, (1, 9, 40, 77)), "long": (300, (300, 141))}


def make_params(seed: int) -> dict[str, np.ndarray]:
  """Random weights {t5x path: float32 array}."""
  rng = np.random.RandomState(seed)  # its streams never change, unlike newer
  emb, mlp = SIZES["emb_dim"], SIZES["mlp_dim"]
  joined = SIZES["num_heads"] * SIZES["head_dim"]
  kernel = lambda m, n: rng.randn(m, n) / np.sqrt(m)
  scale = lambda: 1.0 + 0.4 * rng.randn(emb)
  params = {
    "token_embedder/embedding": rng.randn(SIZES["vocab_size"], emb),
    "encoder/relpos_bias/rel_embedding": rng.randn(SIZES["num_heads"], BUCKETS),
    "encoder/encoder_norm/scale": scale(),
  }
  for i in range(SIZES["num_encoder_layers"]):
    layer = f"encoder/layers_{i}/"
    params[layer + "pre_attention_layer_norm/scale"] = scale()
    params[layer + "pre_mlp_layer_norm/scale"] = scale()
    query = kernel(emb, joined) / np.sqrt(SIZES["head_dim"])
    params[layer + "attention/query/kernel"] = query
    params[layer + "attention/key/kernel"] = kernel(emb, joined)
    params[layer + "attention/value/kernel"] = kernel(emb, joined)
    params[layer + "attention/out/kernel"] = kernel(joined, emb)
    params[layer + "mlp/wi_0/kernel"] = kernel(emb, mlp)
    params[layer + "mlp/wi_1/kernel"] = kernel(emb, mlp)
    params[layer + "mlp/wo/kernel"] = kernel(mlp, emb)
  return {name: value.astype(np.float32) for name, value in params.items()}


def make_inputs(seed: int) -> dict[str, np.ndarray]:
  """{name/ids: int32 [B, L], name/mask: bool [B, L]} as a tokenizer pads."""
  rng = np.random.RandomState(seed)
  inputs = {}
  for name, (length, counts) in INPUTS.items():
    ids = rng.randint(3, SIZES["vocab_size"], size=(len(counts), length))
    position = np.arange(length)[None, :]
    last = np.array(counts)[:, None] - 1
    ids = np.where(position < last, ids, np.where(position == last, 1, 0))
    inputs[name + "/ids"] = ids.astype(np.int32)
    inputs[name + "/mask"] = position <= last
  return inputs


def to_hugging_face(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """t5x names and shapes -> the state dict of a T5EncoderModel."""
  block0 = "encoder.block.0.layer.0.SelfAttention."
  state = {
    "shared.weight": params["token_embedder/embedding"],
    "encoder.embed_tokens.weight": params["token_embedder/embedding"],
    "encoder.final_layer_norm.weight": params["encoder/encoder_norm/scale"],
    block0 + "relative_attention_bias.weight": params[
      "encoder/relpos_bias/rel_embedding"
    ].T,
  }
  kernels = {
    "layer.0.SelfAttention.q": "attention/query",
    "layer.0.SelfAttention.k": "attention/key",
    "layer.0.SelfAttention.v": "attention/value",
    "layer.0.SelfAttention.o": "attention/out",
    "layer.1.DenseReluDense.wi_0": "mlp/wi_0",
    "layer.1.DenseReluDense.wi_1": "mlp/wi_1",
    "layer.1.DenseReluDense.wo": "mlp/wo",
  }
  for i in range(SIZES["num_encoder_layers"]):
    theirs, ours = f"encoder.block.{i}.", f"encoder/layers_{i}/"
    norms = ("pre_attention_layer_norm", "pre_mlp_layer_norm")
    for j, norm in enumerate(norms):
      name = f"{theirs}layer.{j}.layer_norm.weight"
      state[name] = params[f"{ours}{norm}/scale"]
    for their_name, our_name in kernels.items():
      kernel = params[f"{ours}{our_name}/kernel"]
      state[f"{theirs}{their_name}.weight"] = kernel.T
  return state


def run_transformers(params, inputs) -> dict[str, np.ndarray]:
  """{name/output: float32 [B, L, emb_dim]}, padding rows included."""
  import torch
  import transformers

  config = transformers.T5Config(
    vocab_size=SIZES["vocab_size"],
    d_model=SIZES["emb_dim"],
    d_kv=SIZES["head_dim"],
    d_ff=SIZES["mlp_dim"],
    num_layers=SIZES["num_encoder_layers"],
    num_heads=SIZES["num_heads"],
    relative_attention_num_buckets=BUCKETS,
    relative_attention_max_distance=128,
    feed_forward_proj="gated-gelu",
    layer_norm_epsilon=1e-6,
  )
  model = transformers.T5EncoderModel(config).eval()
  state = {
    name: torch.tensor(np.ascontiguousarray(value))
    for name, value in to_hugging_face(params).items()
  }
  model.load_state_dict(state, strict=True)
  outputs = {}
  for name in INPUTS:
    with torch.no_grad():
      output = model(
        input_ids=torch.tensor(inputs[name + "/ids"]).long(),
        attention_mask=torch.tensor(inputs[name + "/mask"]).long(),
      )
    outputs[name + "/output"] = output.last_hidden_state.numpy()
  return outputs


def make_fixture() -> dict[str, np.ndarray]:
  """The whole fixture: params/..., inputs and outputs."""
  params, inputs = make_params(seed=0), make_inputs(seed=1)
  outputs = run_transformers(params, inputs)
  named = {"params/" + name: value for name, value in params.items()}
  return named | inputs | outputs


if __name__ == "__main__":
  safetensors.numpy.save_file(make_fixture(), PATH)
  print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB")
