"""Makes bert.safetensors and clip_text.safetensors with transformers.

  python tests/oracles/make_encoder_fixtures.py

Needs torch and transformers. A file holds the state dict of a small model with
random weights, its config.json as metadata, inputs and outputs. The sizes are
chosen to show mix-ups: no two widths are equal, and norms are far from one.
"""

import json
import pathlib

import numpy as np
import safetensors.numpy

FOLDER = pathlib.Path(__file__).parent
SIZES = dict(
  vocab_size=60,
  hidden_size=24,
  num_hidden_layers=3,
  num_attention_heads=3,
  intermediate_size=40,
)
COUNTS = (1, 7, 19, 20)  # real tokens of each row
LENGTH = 20


def make_state(model, seed: int) -> dict[str, np.ndarray]:
  """Random weights of a model, {name: float32 array}."""
  rng = np.random.RandomState(seed)  # its streams never change, unlike newer
  state = {}
  for name, value in sorted(model.state_dict().items()):
    draw = rng.randn(*value.shape) * (0.3 if value.ndim == 1 else 0.25)
    is_scale = "norm" in name.lower() and name.endswith("weight")
    state[name] = (draw + is_scale).astype(np.float32)
  return state


def make_inputs(seed: int) -> dict[str, np.ndarray]:
  """{ids: int32 [B, L], mask: bool [B, L]}, padded at the end."""
  rng = np.random.RandomState(seed)
  mask = np.arange(LENGTH)[None] < np.array(COUNTS)[:, None]
  ids = rng.randint(1, SIZES["vocab_size"], size=mask.shape) * mask
  return {"ids": ids.astype(np.int32), "mask": mask}


def make_fixture(model, layer: int) -> tuple[dict[str, np.ndarray], str]:
  """A fixture with the outputs of a layer, and the model's config.json."""
  import torch

  state, inputs = make_state(model, seed=0), make_inputs(seed=1)
  model.load_state_dict({n: torch.tensor(x) for n, x in state.items()})
  with torch.no_grad():
    states = model.eval()(
      input_ids=torch.tensor(inputs["ids"]).long(),
      attention_mask=torch.tensor(inputs["mask"]).long(),
      output_hidden_states=True,
    ).hidden_states
  named = {"state/" + name: value for name, value in state.items()}
  config = json.dumps(model.config.to_dict())
  return named | inputs | {"output": states[layer].numpy()}, config


def make_fixtures() -> dict[str, tuple[dict[str, np.ndarray], str]]:
  """The fixtures by their files' names."""
  import transformers as tf

  bert = tf.BertConfig(**SIZES, max_position_embeddings=LENGTH)
  clip = tf.CLIPTextConfig(
    **SIZES, max_position_embeddings=LENGTH,
    bos_token_id=1, eos_token_id=2, pad_token_id=2,
  )  # fmt: skip
  return {
    "bert": make_fixture(tf.BertModel(bert), -1),
    "clip_text": make_fixture(tf.CLIPTextModel(clip), -2),
  }


if __name__ == "__main__":
  for name, (fixture, config) in make_fixtures().items():
    path = FOLDER / f"{name}.safetensors"
    safetensors.numpy.save_file(fixture, path, {"config": config})
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
