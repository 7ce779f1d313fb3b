"""Makes bert, clip_text and clip_towers.safetensors with transformers.

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
    state[name] = np.asarray(draw + is_scale, np.float32)
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


def make_towers() -> tuple[dict[str, np.ndarray], str]:
  """The fixture of a full CLIP: both towers' projected features.

  Images are 3 pixels wider than their patches, and the photo is not square, so
  that what is cut off shows.
  """
  import torch
  import transformers as tf

  end = SIZES["vocab_size"] - 1
  text = SIZES | dict(
    max_position_embeddings=LENGTH,
    bos_token_id=1, eos_token_id=end, pad_token_id=end,
  )  # fmt: skip
  image = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=56, image_size=23, patch_size=5,
  )  # fmt: skip
  # The towers' own projection_dim is of no effect.
  model = tf.CLIPModel(
    tf.CLIPConfig(text_config=text, vision_config=image, projection_dim=16)
  )
  state, inputs = make_state(model, seed=2), make_inputs(seed=3)
  last = inputs["mask"].sum(1) - 1
  inputs["ids"] %= end
  inputs["ids"][~inputs["mask"]] = end  # CLIP pads with the id of the end
  inputs["ids"][np.arange(len(last)), last] = end
  pixels = np.random.RandomState(4).randn(3, 23, 23, 3).astype(np.float32)
  model.load_state_dict({n: torch.tensor(x) for n, x in state.items()})
  with torch.no_grad():
    # The model's own outputs are divided by their lengths.
    texts = model.eval().text_model(
      input_ids=torch.tensor(inputs["ids"]).long(),
      attention_mask=torch.tensor(inputs["mask"]).long(),
    )
    images = model.vision_model(torch.tensor(pixels.transpose(0, 3, 1, 2)))
    outputs = {
      "texts": model.text_projection(texts.pooler_output),
      "images": model.visual_projection(images.pooler_output),
    }
  named = {"state/" + name: value for name, value in state.items()}
  photo = np.random.RandomState(5).randint(0, 256, (64, 47, 3)).astype(np.uint8)
  # Version 5 has two kinds, of which the older one resizes with Pillow.
  kind = getattr(tf, "CLIPImageProcessorPil", tf.CLIPImageProcessor)
  prepare = kind(size={"shortest_edge": 23}, crop_size=23)
  prepared = prepare(photo, return_tensors="np")["pixel_values"][0]
  named |= inputs | {"pixels": pixels, "photo": photo}
  named["prepared"] = np.ascontiguousarray(prepared.transpose(1, 2, 0))
  named |= {name: value.numpy() for name, value in outputs.items()}
  return named, json.dumps(model.config.to_dict())


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
    "clip_towers": make_towers(),
  }


if __name__ == "__main__":
  for name, (fixture, config) in make_fixtures().items():
    path = FOLDER / f"{name}.safetensors"
    safetensors.numpy.save_file(fixture, path, {"config": config})
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
