"""Draws the demo's image and animation, of four fixed prompts.

  python examples/hero.py --outdir=docs

It writes shapes.png, the first image (seed 0) of each prompt, and shapes.gif,
the images x_hat of every fourth step of all three stages. No image is chosen:
another run draws the same.
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

import imagen_jax

PROMPTS = (
  "two red circles above a blue square on a yellow background",
  "three small dotted white stars left of one large plain orange square on a"
  " purple background",
  "one large striped green triangle on a black background",
  "two big plain yellow squares below a little red star, blue background",
)
SIDE = 160  # pixels of one prompt in the animation
EVERY = 4  # steps from one frame to the next
FRAME = 80  # milliseconds of a frame
LAST = 3000  # milliseconds of the finished images


def draw(
  config: str, steps: int | None
) -> tuple[list[Image.Image], list[list[Image.Image]]]:
  """Samples the prompts one by one, as launch/quickstart.sh does.

  Args:
    config: the cascade's config.
    steps: the steps of every stage, or None for the config's.

  Returns:
    The image of each prompt, and the frames of each prompt.
  """
  imagen = imagen_jax.load(config, overrides={"batch_size": 1})
  images, films = [], []
  for prompt in PROMPTS:
    frames: list[Image.Image] = []
    samples = imagen.sample(
      prompt,
      steps=steps,
      callback=lambda stage, step, x_hat, to=frames: to.append(small(x_hat[0])),
      callback_every=EVERY,
    )
    images.append(samples.images[0])
    films.append(frames)
  return images, films


def small(x_hat: np.ndarray) -> Image.Image:
  """Scales an image [H, W, 3] in [-1, 1] to SIDE, with its pixels visible."""
  pixels = np.clip(np.asarray(x_hat) * 127.5 + 127.5, 0, 255).astype(np.uint8)
  image = Image.fromarray(pixels)
  kind = Image.NEAREST if image.width < SIDE else Image.BOX
  return image.resize((SIDE, SIDE), kind)


def row(images: list[Image.Image]) -> Image.Image:
  """Puts images of equal size beside each other."""
  return Image.fromarray(np.hstack([np.asarray(image) for image in images]))


def column(images: list[Image.Image]) -> Image.Image:
  """Puts images of equal size below each other."""
  return Image.fromarray(np.vstack([np.asarray(image) for image in images]))


def main() -> None:
  """Draws and writes both files."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--outdir", default=".", help="the folder of both files")
  parser.add_argument("--config", default="shapes", help="the cascade")
  parser.add_argument("--steps", type=int, help="the steps of every stage")
  args = parser.parse_args()
  images, films = draw(args.config, args.steps)
  outdir = pathlib.Path(args.outdir)
  outdir.mkdir(parents=True, exist_ok=True)
  row(images).save(outdir / "shapes.png", optimize=True)
  frames = [row(list(frame)) for frame in zip(*films, strict=True)]
  # One palette for all frames, so that flat colours do not flicker.
  palette = column(frames).quantize(128)
  frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
  times = [FRAME] * (len(frames) - 1) + [LAST]
  frames[0].save(
    outdir / "shapes.gif",
    save_all=True,
    append_images=frames[1:],
    duration=times,
    loop=0,
    optimize=True,
  )
  for name in ("shapes.png", "shapes.gif"):
    print(outdir / name)


if __name__ == "__main__":
  main()
