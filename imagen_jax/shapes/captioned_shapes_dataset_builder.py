"""captioned_shapes as a TFDS dataset, drawn when it is prepared."""

import collections.abc
import dataclasses
import io

import tensorflow_datasets as tfds
from PIL import Image

from imagen_jax.shapes import scenes
from imagen_jax.shapes.examples import draw_example


@dataclasses.dataclass
class ShapesConfig(tfds.core.BuilderConfig):
  """Describes the size of the dataset.

  Attributes:
    train: the number of examples in the split train.
    test: the number of examples in each of the two test splits.
  """

  train: int = 20_000
  test: int = 2_000


class Builder(tfds.core.GeneratorBasedBuilder):
  """Images of coloured shapes, with captions and the scenes that are drawn."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
    ShapesConfig(name="full", description="The whole dataset."),
    ShapesConfig(
      name="tiny", description="Its first examples.", train=64, test=16
    ),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    size = scenes.CANVAS
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=(size, size, 3), encoding_format="png"
          ),
          "caption": tfds.features.Text(),
          "scene": tfds.features.Text(),
        }
      ),
      supervised_keys=("caption", "image"),
      disable_shuffling=True,  # record i of a split is example i
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    config = self.builder_config
    sizes = dict.fromkeys(scenes.SPLITS, config.test) | {"train": config.train}
    return {s: self._generate_examples(s, n) for s, n in sizes.items()}

  def _generate_examples(
    self, split: str, size: int
  ) -> collections.abc.Iterator[tuple[int, dict[str, object]]]:
    for i in range(size):
      yield i, example(split, i)


def example(split: str, i: int) -> dict[str, object]:
  """Draws `draw_example(split, i)`, with its image as a PNG in a BytesIO."""
  drawn = draw_example(split, i)
  png = io.BytesIO()
  Image.fromarray(drawn["image"]).save(png, "png")
  png.seek(0)
  return drawn | {"image": png}
