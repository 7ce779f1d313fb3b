"""The weights that come with the package: that they read text, and draw it."""

import collections
import pathlib

import jax
import numpy as np
import pytest

import imagen_jax
from imagen_jax import build
from imagen_jax.build.configs import read_config
from imagen_jax.data.pipeline import make_batches
from imagen_jax.evals.text_use import caption_losses
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import Placement
from imagen_jax.request import Row
from imagen_jax.shapes import captioned_shapes_dataset_builder
from imagen_jax.shapes.judge import judge, share, tally
from imagen_jax.shapes.scenes import from_json

ROOT = pathlib.Path(__file__).parents[1]
COUNT = 48


@pytest.fixture(scope="module")
def config():
  return read_config("shapes")


@pytest.fixture(scope="module")
def cascade(config):
  return build.cascade(config)


@pytest.fixture(scope="module")
def loaded(config, cascade):
  """(text encoder, weights of each stage)."""
  placement = Placement(make_mesh(devices=jax.devices()[:1]))
  encode = build.load_encoder(config, placement)
  load = lambda name: build.load_net(config, cascade, name, placement)
  return encode, [load(name) for name in cascade.names]


@pytest.fixture(scope="module")
def records():
  """The first examples of the test split, as the dataset holds them."""
  drawn = [
    captioned_shapes_dataset_builder.example("test", i) for i in range(COUNT)
  ]
  return [record | {"image": record["image"].read()} for record in drawn]


def test_they_fit_in_25_megabytes():
  files = list((ROOT / "imagen_jax" / "weights").iterdir())
  assert sum(file.stat().st_size for file in files) < 25e6


@pytest.mark.parametrize("index", range(3))
def test_the_own_caption_has_the_lower_loss(cascade, loaded, records, index):
  """In every stage: its text is used."""
  encode, params = loaded
  stage = cascade.stages[index]
  batch = next(
    make_batches(
      records,
      size=stage.size,
      lowres_size=stage.lowres_size,
      crop=stage.crop_size,
      tokenize=encode.tokenizer,
      global_batch=COUNT,
      seed=0,
    )
  )
  own, other = jax.jit(caption_losses, static_argnums=0)(
    stage,
    params[index],
    jax.random.key(0),
    batch["image"],
    encode.from_ids(batch["tokens"], batch["mask"]),
    batch.get("lowres"),
  )
  assert own.mean() < other.mean()
  # A sign test: were text no use, own would be lower half of the time.
  assert (own < other).mean() > 0.5 + 2 * 0.5 / np.sqrt(COUNT)


def test_images_show_what_their_captions_say(records):
  """More claims hold than of other scenes, by far; see docs/model_cards.md."""
  count = 6
  captions = [record["caption"] for record in records[:count]]
  # Each of its own seed, and all in one batch.
  rows = [Row(i, 0, i) for i in range(count)]
  imagen = imagen_jax.load("shapes", mesh=make_mesh(devices=jax.devices()[:1]))
  # Fewer steps than the config's, to save time.
  parts = imagen.stream(
    captions, rows, batch_size=count, steps=[24, 6, 2], progress=False
  )
  pictures = np.stack(next(parts).images)
  scenes = [from_json(record["scene"])[0] for record in records[:count]]
  shares = []
  for truths in (scenes, scenes[1:] + scenes[:1]):
    counts = collections.Counter()
    for picture, scene in zip(pictures, truths):
      counts += tally(judge(picture, scene))
    shares.append(share(counts))
  own, other = shares
  assert own["background"] >= 0.8
  assert own["all"] > other["all"] + 0.35, (own, other)
