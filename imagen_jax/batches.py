"""A request's batches: the rows that processes hold, their texts and inputs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from imagen_jax.cascade import filled, stage_inputs
from imagen_jax.image_ids import image_ids
from imagen_jax.parallel import mesh as meshes
from imagen_jax.progress import Progress, Stopwatch
from imagen_jax.request import Request, Row
from imagen_jax.samples import Samples
from imagen_jax.stage import SamplingInputs
from imagen_jax.types import TextEmbedding

ROUND = 512  # images of each process whose texts are kept at a time
Arrays = dict[str, np.ndarray]  # a stage's images of a batch, by its name


@dataclasses.dataclass(frozen=True)
class Batches:
  """Divides a request into batches, whose rows are sharded over a mesh.

  Attributes:
    request: the images. Copies of the last image fill each batch to `size`.
    devices: the mesh.
  """

  request: Request
  devices: Mesh

  @property
  def size(self) -> int:
    """The rows of a batch, a multiple of the devices that shard them."""
    return meshes.whole_rows(self.devices, self.request.batch_size)

  @property
  def rows(self) -> NamedSharding:
    """The sharding of a batch's rows."""
    return meshes.batch_sharding(self.devices, self.size)

  @functools.cached_property
  def held(self) -> np.ndarray:
    """The rows that this process holds, in order."""
    return meshes.host_rows(self.rows, self.size)

  @functools.cached_property
  def own(self) -> np.ndarray:
    """The rows that this process is to write, in order."""
    return meshes.own_rows(self.rows, self.size)

  def rounds(self) -> Iterator[list[Sequence[Row]]]:
    """Yields the batches of at most ROUND images of each process at a time."""
    images, most = self.request.rows, self.request.batch_size
    batches = [images[i : i + most] for i in range(0, len(images), most)]
    several = max(1, ROUND // len(self.held))
    for start in range(0, len(batches), several):
      yield batches[start : start + several]

  def texts(
    self,
    batches: Sequence[Sequence[Row]],
    encode: Callable[..., TextEmbedding],
  ) -> list[TextEmbedding]:
    """Returns the texts of batches, of the rows that this process holds.

    encode: called as a TextEncoder.
    """
    request, text = self.request, self.request.text
    if request.prompts is None:
      # Unconditional images have the null text, which no prompt changes.
      text = encode(["-"]).null_text()
    if text is not None:
      take = lambda batch: jax.tree.map(lambda a: self.take(batch, a), text)
      texts = list(map(take, batches))
    else:
      quiet = not request.progress or jax.process_index() > 0
      count = len({row.prompt for batch in batches for row in batch})
      with Stopwatch() as watch:
        texts = self._encode(batches, request.prompts, encode)
        Progress("text", 1, quiet=quiet).log(
          f"  text: {count} prompt(s) in {watch.lap()}"
        )
    if request.negative is not None:
      nulls = self._encode(batches, request.negative, encode)
      nulls = [null.replace(null=None) for null in nulls]
      texts = [a.replace(null=b) for a, b in zip(texts, nulls, strict=True)]
    return texts

  def _encode(
    self,
    batches: Sequence[Sequence[Row]],
    prompts: Sequence[str],
    encode: Callable[..., TextEmbedding],
  ) -> list[TextEmbedding]:
    """Encodes the prompts of batches in one go.

    Args:
      batches: the batches.
      prompts: the request's prompts, or what replaces each of them.
      encode: called as a TextEncoder.

    Returns:
      The embeddings of each batch, of the rows that this process holds.
    """
    count, each = len(batches), self.rows.shard_shape((self.size,))[0]
    numbers = [[row.prompt for row in filled(b, self.size)] for b in batches]
    # Each group of devices encodes its rows of all batches.
    numbers = np.reshape(numbers, (count, -1, each)).swapaxes(0, 1)
    shards = [self.rows] if each < self.size else []
    text = encode([prompts[i] for i in numbers.flat], *shards)

    def split(leaf: np.ndarray) -> np.ndarray:
      """Sorts [groups * count * each, ...] by batch."""
      leaf = leaf.reshape(-1, count, each, *leaf.shape[1:]).swapaxes(0, 1)
      return leaf.reshape(count, -1, *leaf.shape[3:])

    text = jax.tree.map(split, text)
    return [jax.tree.map(lambda a, i=i: a[i], text) for i in range(count)]

  def take(self, batch: Sequence[Row], values: np.ndarray) -> np.ndarray:
    """Returns the values of the rows that this process holds.

    values: [n, ...], one for each prompt of the request.
    """
    images = filled(batch, self.size)
    return np.asarray(values)[[images[row].prompt for row in self.held]]

  def inputs(
    self,
    number: int,
    batch: Sequence[Row],
    text: TextEmbedding | None,
    before: np.ndarray | None,
  ) -> SamplingInputs:
    """Returns a stage's inputs, sharded by rows.

    Args:
      number: the stage's number.
      batch: the images.
      text: their prompts, of the rows that this process holds.
      before: the images of the stage before, of the same rows; None for the
        first stage that runs.
    """
    if before is None and self.request.lowres is not None:
      before = self.take(batch, self.request.lowres)
    images = filled(batch, self.size)
    return stage_inputs(number, images, text, before, self.rows)

  def all_of(
    self, batch: Sequence[Row], made: Arrays, settings: Mapping[str, str]
  ) -> Samples:
    """Returns all images of a batch, on each process."""
    if jax.process_count() > 1:
      made = meshes.to_host(meshes.to_global(made, self.rows, self.size))
    return self._samples(batch, range(len(batch)), made, settings)

  def share_of(
    self, batch: Sequence[Row], made: Arrays, settings: Mapping[str, str]
  ) -> Samples:
    """Returns the images of a batch that this process is to write."""
    own = self.own[self.own < len(batch)]
    images = [batch[row] for row in own]
    return self._samples(
      images, np.searchsorted(self.held, own), made, settings
    )

  def _samples(
    self,
    images: Sequence[Row],
    places: Sequence[int],
    made: Arrays,
    settings: Mapping[str, str],
  ) -> Samples:
    """Returns the Samples of images, given their places in arrays."""
    prompts = self.request.prompts
    return Samples(
      prompts=tuple(prompts and prompts[row.prompt] for row in images),
      seeds=tuple(row.seed for row in images),
      indices=tuple(row.index for row in images),
      ids=image_ids(self.request.part(images), settings),
      stages={name: array[list(places)] for name, array in made.items()},
      settings=settings,
    )
