"""Writes a training run's averaged weights as one small file.

The file's metadata holds the run's step and the config it was trained with.

  python -m imagen_jax.export --config=configs/shapes16.py --workdir=DIR \\
    --output=imagen_jax/weights/shapes16.safetensors
"""

import json
import os

import jax
from absl import flags

from imagen_jax import build
from imagen_jax.runtime import checkpoints, program, weights

read_config = program.define_config("configs/shapes16.py")
WORKDIR = flags.DEFINE_string("workdir", None, "The training run.")
OUTPUT = flags.DEFINE_string("output", None, "The .safetensors file to write.")


def main() -> None:
  config = read_config()
  if not WORKDIR.value or not OUTPUT.value:
    raise ValueError("--workdir and --output are needed, see --help")
  build.check_keys(config)
  stage, text = build.stage(config.stage), build.text(config.text)
  key = jax.random.key(0)
  like = jax.eval_shape(lambda: build.init_net(stage, text, key))
  step, ema, trained = checkpoints.restore_ema(WORKDIR.value, like)
  note = {"config": json.dumps(trained), "step": str(step)}
  output = os.path.expanduser(OUTPUT.value)
  size = weights.save_weights(output, ema, metadata=note)
  print(f"{output}: {size / 1e6:.2f} MB, step {step}")


if __name__ == "__main__":
  program.run(main)
