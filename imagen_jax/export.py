"""Writes a training run's averaged weights as small files for the package.

  python -m imagen_jax.export --config=configs/shapes16.py --workdir=DIR \\
    --outdir=imagen_jax/weights

They go to the names that the config gives: `weights` for the net and, from a
run that trained the text encoder too, --text_name for that.
"""

import json
import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from imagen_jax import build
from imagen_jax.runtime import checkpoints, program, weights

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The training run.")
OUTDIR = flags.DEFINE_string("outdir", None, "Where the files go.")
TEXT_NAME = flags.DEFINE_string(
  "text_name", "text.safetensors", "The text encoder's file."
)


def main() -> None:
  config = CONFIG.value
  if config is None or not WORKDIR.value or not OUTDIR.value:
    raise ValueError("--config, --workdir and --outdir are needed, see --help")
  build.check_keys(config)
  stage, text = build.stage(config.stage), build.text(config.text)
  key = jax.random.key(0)
  like = {"net": jax.eval_shape(lambda: build.init_net(stage, text, key))}
  if text.trainable:
    like["text"] = jax.eval_shape(lambda: build.init_text(text, key))
  step, ema = checkpoints.restore_ema(WORKDIR.value, like)

  names = {"net": pathlib.Path(config.weights).name, "text": TEXT_NAME.value}
  note = {
    "config": json.dumps(json.loads(config.to_json_best_effort())),
    "step": str(step),
    "seed": str(config.train.seed),
  }
  outdir = pathlib.Path(OUTDIR.value)
  for part, params in ema.items():
    size = weights.save_weights(outdir / names[part], params, metadata=note)
    print(f"{outdir / names[part]}: {size / 1e6:.2f} MB, step {step}")


if __name__ == "__main__":
  program.run(main)
