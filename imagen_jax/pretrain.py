r"""Trains a small T5 encoder on text alone: captions become descriptions.

  python -m imagen_jax.pretrain --config=configs/shapes16.py \
    --captions=captions.txt --output=text.safetensors

Use it for images of your own world, on whose captions no published T5 was
trained. Each line of the captions holds an image's description and one or more
captions of it, separated by tabs. text/describe.py explains the task.
"""

import jax
import numpy as np
import optax
from absl import flags

from imagen_jax import build, files
from imagen_jax.cli import command_line, program
from imagen_jax.interop import t5
from imagen_jax.interop.weights import save_weights
from imagen_jax.nets.t5 import T5Encoder
from imagen_jax.parallel import compile_cache, compiler
from imagen_jax.progress import Progress
from imagen_jax.text.describe import Describer, describe_loss, pair
from imagen_jax.training.optimizers import Adam


def define_flags(values: flags.FlagValues) -> None:
  """Defines the verb's flags."""
  on = dict(flag_values=values)
  command_line.define_config(values, "configs/shapes16.py")
  command_line.define_compile_cache(values)
  command_line.define_path(
    values, "captions", None,
    "UTF-8 text: description, tab, captions of an image.",
  )  # fmt: skip
  command_line.define_path(
    values, "output", None, "The .safetensors file to write."
  )
  flags.DEFINE_integer("steps", 4000, "Steps to train.", **on)
  flags.DEFINE_integer("batch_size", 128, "Images per step.", **on)
  flags.DEFINE_float(
    "learning_rate", 1e-3, "Adam's learning rate at its peak.", **on
  )
  flags.DEFINE_integer("seed", 0, "Seed of weights and order.", **on)


def read_captions(path: str) -> list[list[str]]:
  """Reads each image's description and captions from one line per image.

  Raises:
    ValueError: the file cannot be read or is empty, or a line lacks a
      description or a caption.
  """
  # Tabs are not stripped, because an empty column is a mistake.
  found = files.read_lines(path, "captions", blanks=" \r")
  lines = [line.split("\t") for line in found]
  for number, captions in enumerate(lines, 1):
    count = sum(bool(caption.strip()) for caption in captions)
    if count < max(2, len(captions)):
      raise ValueError(
        f"line {number} of {path} has {count} caption(s) in {len(captions)} "
        "column(s), expected two or more and none empty"
      )
  if not lines:
    raise ValueError(f"captions {path} is empty")
  return lines


@program.verb(define_flags)
@compile_cache.enabled()
def main(args: flags.FlagValues) -> None:
  """Trains the encoder and writes its weights."""
  if not args.captions or not args.output:
    raise ValueError("--captions and --output are needed, see --help")
  command_line.check_at_least(args, "steps", 1)
  command_line.check_at_least(args, "batch_size", 1)
  command_line.check_seed(args)
  optimizer = Adam(
    learning_rate=args.learning_rate,
    warmup_steps=min(200, args.steps // 2),
    decay_steps=args.steps,
    clip_norm=1.0,
  )
  output = args.output
  program.check_output("output", output, ".safetensors")
  text = build.required_text(args.config)
  if not isinstance(text.encoder, T5Encoder):
    raise ValueError(
      "config text is not of T5, expected text.kind t5: others are not trained"
      " here"
    )
  if text.int8:
    raise ValueError("config text.int8 is True, expected False for training")
  tokenizer = build.tokenizer(text)
  if tokenizer.vocab_size > text.encoder.vocab_size:
    raise ValueError(
      f"text.encoder.vocab_size is {text.encoder.vocab_size}, expected at "
      f"least the tokenizer's {tokenizer.vocab_size} pieces"
    )
  captions = read_captions(args.captions)

  key = jax.random.key(args.seed)
  model = Describer(text.encoder)
  some = np.zeros((1, text.length), np.int32)
  params = jax.jit(lambda: model.init(key, some, some == 0, some)["params"])()
  opt_state = optimizer.init(params)

  @compiler.jit
  def train_step(params, opt_state, batch):
    loss = lambda params: describe_loss(model, params, *batch)
    (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    params = optax.apply_updates(params, updates)
    return params, opt_state, value, accuracy

  progress = Progress("pretrain", args.steps)
  for step in range(args.steps):
    rng = np.random.default_rng((args.seed, step))
    chosen = rng.integers(len(captions), size=args.batch_size)
    batch = pair(tokenizer, [captions[i] for i in chosen], rng)
    params, opt_state, loss, accuracy = train_step(params, opt_state, batch)
    if step == 0:
      jax.block_until_ready(loss)
      progress.start(1)
    if (step + 1) % 100 == 0 or step + 1 == args.steps:
      progress.show(
        step + 1, f"loss {float(loss):.3f}  right {float(accuracy):.1%}"
      )
  note = {
    "steps": str(args.steps),
    "batch_size": str(args.batch_size),
    "learning_rate": str(args.learning_rate),
    "seed": str(args.seed),
  } | t5.vocabulary_note(tokenizer.fingerprint)
  size = save_weights(output, params["encoder"], metadata=note)
  progress.log(f"{output}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
  program.run(main)
