"""A small CLIP with random weights, as it is published: write_clip(folder)."""

import json
import pathlib

import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

ORACLE = pathlib.Path(__file__).parents[1] / "oracles/clip_towers.safetensors"
LENGTH = 9  # tokens
ENDS = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
ROWS = 49_409  # one more than CLIP's, whose vocabulary is another one


def write_clip(folder: pathlib.Path) -> pathlib.Path:
  """Writes config.json, weights, and a tokenizer of single characters.

  A caption keeps its first 7 characters, spaces not counted.
  """
  folder.mkdir()
  with safetensors.safe_open(ORACLE, "numpy") as file:
    config = json.loads(file.metadata()["config"])
  state = {
    name.removeprefix("state/"): value
    for name, value in safetensors.numpy.load_file(ORACLE).items()
    if name.startswith("state/")
  }
  sizes = {"vocab_size": ROWS, "max_position_embeddings": LENGTH}
  config["text_config"] |= sizes
  rng = np.random.default_rng(0)
  tables = "text_model.embeddings.{}_embedding.weight"
  state[tables.format("token")] = rng.normal(size=(ROWS, 24)).astype("float16")
  state[tables.format("position")] = state[tables.format("position")][:LENGTH]
  safetensors.numpy.save_file(state, folder / "model.safetensors")
  (folder / "config.json").write_text(json.dumps(config))
  letters = {letter: i for i, letter in enumerate(map(chr, range(33, 127)))}
  vocabulary = letters | ENDS | {"rest": ROWS - 1}
  text = tokenizers.Tokenizer(models.BPE(vocabulary, []))
  text.normalizer = normalizers.Lowercase()
  text.pre_tokenizer = pre_tokenizers.Whitespace()
  text.decoder = decoders.Fuse()
  text.add_special_tokens([*ENDS])
  text.post_processor = processors.TemplateProcessing(
    single="<|startoftext|> $A <|endoftext|>", special_tokens=[*ENDS.items()]
  )
  text.save(str(folder / "tokenizer.json"))
  return folder
