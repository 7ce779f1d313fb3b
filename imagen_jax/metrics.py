"""The metrics of evaluate: which can be computed, and the nets they need."""

from collections.abc import Sequence

from absl import flags

from imagen_jax.evals.clip_features import ClipFeatures
from imagen_jax.evals.features import (
  PIXEL_SIZE,
  PIXELS,
  Extractor,
  inception_extractor,
)
from imagen_jax.interop import clip, encoders, hub, inception, published
from imagen_jax.interop.identity import identity
from imagen_jax.text.settings import Text

METRICS = ("judge", "loss", "frechet_pixels", "fid", "clip", "cmmd")
MOST_CMMD = 100_000  # images, as CMMD compares all pairs


def choose_metrics(
  args: flags.FlagValues, *, text: bool, scenes: bool, size: int
) -> tuple[str, ...]:
  """Returns the metrics of --metrics, or all that can be computed.

  Args:
    args: the flags.
    text: whether the cascade reads text.
    scenes: whether records have scenes.
    size: the images' resolution, in pixels.

  Raises:
    ValueError: a metric is unknown or cannot be computed.
  """
  lacks = {
    "judge": "" if scenes else "a cascade with text and records with scenes",
    "loss": "" if text else "a cascade with text",
    "frechet_pixels": (
      f"images of at least {PIXEL_SIZE} pixels" if size < PIXEL_SIZE else ""
    ),
    "fid": "" if args.inception else "--inception",
    "clip": "" if args.clip and text else "--clip and a cascade with text",
    "cmmd": "" if args.clip else "--clip",
  }
  if args.metrics is None:
    left_out = {"loss"} if args.sweep else {}
    return tuple(m for m in METRICS if not lacks[m] and m not in left_out)
  for metric in args.metrics:
    if metric not in METRICS:
      raise ValueError(
        f"--metrics has {metric!r}, expected some of {', '.join(METRICS)}"
      )
    if lacks[metric]:
      raise ValueError(f"--metrics has {metric}, which needs {lacks[metric]}")
  return tuple(m for m in METRICS if m in args.metrics)


def check_cmmd(num_images: int, num_reference: int) -> None:
  """Checks that CMMD can compare all pairs of images.

  Raises:
    ValueError: there are too many images.
  """
  for flag, count in (
    ("num_images", num_images),
    ("num_reference", num_reference),
  ):
    if count > MOST_CMMD:
      raise ValueError(
        f"--metrics has cmmd of {count} images, expected --{flag} of at most"
        f" {MOST_CMMD}, or --metrics without cmmd"
      )


def load_extractors(
  args: flags.FlagValues, metrics: Sequence[str]
) -> dict[str, Extractor]:
  """Returns the features of the distances among the metrics.

  Raises:
    ValueError: the weights of Inception cannot be used.
  """
  found = {}
  if "frechet_pixels" in metrics:
    found["frechet_pixels"] = PIXELS
  if "fid" in metrics:
    params = inception.load(published.resolve(args.inception))
    digest = identity(args.inception)
    found["fid"] = inception_extractor(params, digest, args.resize)
  return found


def load_clip(
  args: flags.FlagValues, metrics: Sequence[str]
) -> ClipFeatures | None:
  """Checks --clip, whose weights are read when features are first computed.

  Returns:
    What computes its features; None without metrics that need them.

  Raises:
    ValueError: its files are missing, damaged, or not of a full CLIP.
  """
  if not {"clip", "cmmd"} & {*metrics}:
    return None
  folder = published.resolve(args.clip)
  nets = clip.towers(folder)
  text = Text(
    nets.text,
    vocabulary=str(folder / "tokenizer.json"),
    weights=str(folder),
    length=nets.text.max_length,
  )
  tokenizer = published.tokenizer(text)
  encoders.check_vocabulary(text, tokenizer, clip.VOCABULARIES)
  file = hub.find(folder)
  one = file.suffix == ".safetensors"  # else an index of shards
  return ClipFeatures(
    text=nets.text,
    image=nets.image,
    load=lambda: clip.load_towers(folder, nets.shapes),
    tokenizer=tokenizer,
    model=nets.name,
    digest=identity(str(file if one else folder)),
  )
