r"""Writes a training run's averaged weights as one small file.

The file's metadata holds the run's step and the config it was trained with. A
text encoder's metadata holds the SHA-256 of its vocabulary.

  python -m imagen_jax.export --config=configs/shapes16.py --workdir=DIR \
    --output=shapes16.safetensors

--diffusers writes a folder of diffusers' UNet2DConditionModel instead, for a
net of DeepFloyd IF's kind. --text writes the config's text encoder instead,
config.text.weights, to a folder that transformers or t5x can read:

  python -m imagen_jax.export --config=configs/t5_xxl.py --output=DIR \
    --text=hugging_face --config.text.weights=CHECKPOINT
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

from imagen_jax import build
from imagen_jax.checkpoints import manager
from imagen_jax.cli import command_line, program
from imagen_jax.interop import diffusers, published, t5, weights
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.progress import print_line
from imagen_jax.text.settings import Text
from imagen_jax.training.setup import net_shapes

LAYOUTS = {"hugging_face": t5.save_hugging_face, "t5x": t5.save_t5x}


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes16.py")
  command_line.define_path(
    values, "workdir", None, "The workdir of the training run."
  )
  command_line.define_path(
    values, "output", None,
    "The .safetensors file to write; with --text or --diffusers, the folder.",
  )  # fmt: skip
  flags.DEFINE_boolean(
    "diffusers", False, "Writes the net as diffusers' UNet2DConditionModel.",
    **on,
  )  # fmt: skip
  flags.DEFINE_enum(
    "text", None, sorted(LAYOUTS), "Writes the text encoder in this layout.",
    **on,
  )  # fmt: skip


def export_text(config: Text, layout: str, output: str) -> str:
  """Writes the text encoder's weights, with their vocabulary's fingerprint.

  The fingerprint is the one that the weights record; otherwise it is that of
  config.text.vocabulary, if that can be read.

  Args:
    config: the text encoder's settings.
    layout: a key of LAYOUTS.
    output: the folder to write.

  Returns:
    The line to log.

  Raises:
    ValueError: the encoder is quantised to int8, or is not T5's.
  """
  if not isinstance(config.encoder, T5Encoder):
    raise ValueError(
      f"--text={layout} is a layout of T5, expected a config with text.kind t5"
    )
  if config.int8:
    raise ValueError(
      "config text.int8 is True, expected False: the layouts hold floats"
    )
  vocabulary = published.vocabulary_of(config)
  params = build.load_text(config)
  LAYOUTS[layout](output, params, vocabulary)
  leaves = jax.tree.leaves(params)
  size = sum(leaf.nbytes for leaf in leaves)
  of = f"vocabulary {vocabulary[:16]}..." if vocabulary else "no vocabulary"
  return f"{output}: {size / 1e6:.2f} MB, text encoder as {layout}, {of}"


def export_net(
  config: Mapping[str, Any], workdir: str, output: str, *, as_diffusers: bool
) -> str:
  """Writes a run's averaged weights.

  Args:
    config: the stage's config.
    workdir: the run's folder.
    output: the file to write, or the folder if as_diffusers.
    as_diffusers: writes diffusers' UNet2DConditionModel.

  Returns:
    The line to log.
  """
  build.check_keys(config)
  stage = build.stage(config.stage)
  like = net_shapes(stage, build.text(config.text))
  step, ema, trained = manager.restore_ema(workdir, like)
  if as_diffusers:
    diffusers.save(output, stage.net, ema)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(ema))
    return f"{output}: {size / 1e6:.2f} MB, step {step}, as diffusers"
  note = {"config": json.dumps(trained), "step": str(step)}
  size = weights.save_weights(output, ema, metadata=note)
  return f"{output}: {size / 1e6:.2f} MB, step {step}"


@program.verb(define_flags)
def main(args: flags.FlagValues) -> None:
  """Writes a run's averaged weights or the config's text encoder."""
  config, layout, workdir = args.config, args.text, args.workdir
  if not args.output or bool(layout) == bool(workdir):
    raise ValueError(
      "--output and one of --workdir and --text are needed, see --help"
    )
  output = args.output
  if layout or args.diffusers:
    program.check_folder("output", output)
  else:
    program.check_output("output", output, ".safetensors")
  if layout == "t5x":
    t5.check_new(output)
  if layout:
    print_line(export_text(build.required_text(config), layout, output))
  else:
    print_line(export_net(config, workdir, output, as_diffusers=args.diffusers))


if __name__ == "__main__":
  program.run(main)
