"""The interface: loads a cascade, samples images from it, trains a stage.

  imagen = imagen_jax.load("shapes")
  imagen.sample("two red circles above a blue square on a yellow background")

The verbs are thin wrappers over it.
"""

import json
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from imagen_jax import __version__, build
from imagen_jax.batches import Batches
from imagen_jax.build import configs
from imagen_jax.cascade import Cascade, by_rows, carry_places
from imagen_jax.files import expand
from imagen_jax.image_ids import image_ids
from imagen_jax.parallel import compile_cache
from imagen_jax.parallel import mesh as meshes
from imagen_jax.parallel.processes import shared_errors
from imagen_jax.parts import Parts
from imagen_jax.progress import Progress, Stopwatch
from imagen_jax.request import (
  Callback,
  PerStage,
  Picture,
  Request,
  Row,
  image_rows,
  is_observed,
  make_request,
  stops,
)
from imagen_jax.samples import Samples, join
from imagen_jax.stage import SamplingInputs, run_stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.tokenizer import check_prompts
from imagen_jax.types import TextEmbedding

if TYPE_CHECKING:
  from imagen_jax.training.log import Callback as TrainingCallback
  from imagen_jax.training.loop import Trained

TEXT = "text"  # the name of the part that is no stage, the text encoder
NO_TEXT = "the cascade has no text encoder (text=None), expected prompts=None"


def load(
  config: Any,
  *,
  weights: Mapping[str, str] | str | None = None,
  mesh: Mesh | None = None,
  overrides: Mapping[str, Any] | None = None,
  offload: bool = False,
) -> "Imagen":
  """Loads a cascade with its text encoder.

  Weights are read when they are first used, and stay in device memory.

  Args:
    config: the name of a shipped config ("shapes", "deepfloyd_if:xl,l"), the
      path of a config file, or a ConfigDict.
    weights: by stage (or "text"), a file, workdir or diffusers folder to read
      in place of the config's path. For a config with hf:// paths also one
      text: a folder that holds the repositories by name, or another owner.
    mesh: the devices to use. None uses the config's mesh. If the config has
      none, batches are sharded over all local devices.
    overrides: config values by dotted key, {"shapes16.sampling.steps": 25}.
    offload: whether each part's weights are freed after use and read again for
      the next use. Set it for a device that cannot hold all weights.

  Raises:
    ValueError: if a config, key or path cannot be used.
  """
  config = configs.resolve(config, overrides)
  build.replace_weights(config, weights)  # first: they may describe a net
  cascade = build.cascade(config)
  build.check_files(
    config, cascade, weights if isinstance(weights, Mapping) else ()
  )
  devices = build.sampling_devices(config) if mesh is None else mesh
  height = build.height_stages(config, devices)
  places = {
    name: build.net_placement(devices, name in height) for name in cascade.names
  }
  spread = build.text_placement(devices)
  return Imagen(
    cascade,
    load_net=lambda name: build.load_net(config, cascade, name, places[name]),
    load_encoder=(
      (lambda: build.load_encoder(config, spread)) if config.text else None
    ),
    check_net=lambda name: build.check_net(config, cascade, name),
    identify=lambda name: build.identity(config, name),
    devices=devices,
    batch_size=config.batch_size,
    offload=offload,
    height=height,
    settings={"config": config.to_json_best_effort()},
  )


def train(
  config: Any,
  workdir: str | os.PathLike,
  *,
  overrides: Mapping[str, Any] | None = None,
  callback: "TrainingCallback | None" = None,
  allow_config_change: bool = False,
  profile_steps: tuple[int, int] | None = None,
  on_hang: "Callable[[], None]" = lambda: None,
) -> "Trained":
  """Trains a stage, as the command `python -m imagen_jax.train` does.

  Call it again with the same workdir to resume. SIGTERM, SIGHUP and Ctrl-C
  (also a notebook's interrupt button) save the current step and return. After a
  second signal nothing more is saved. One run at a time writes into a workdir.

  Args:
    config: the name of a shipped config, the path of a config file, or a
      ConfigDict, of one stage.
    workdir: the folder for checkpoints, metrics and sample grids; gs:// works.
    overrides: config values by dotted key, {"train.steps": 100}.
    callback: called as callback(step, metrics) each time metrics are logged.
      metrics maps the names in metrics.jsonl to floats. Of several processes
      the first one calls it.
    allow_config_change: whether to resume a checkpoint of a config that
      computes something else.
    profile_steps: the first and the last step to trace, into workdir/trace.
      Steps that this run does not reach are not traced.
    on_hang: called from another thread if no step ends for long
      (train.hang_after), after all stacks were printed. The command ends the
      process here, so that a launcher starts the job again.

  Returns:
    The step that the run reached, its workdir, and whether it was interrupted.

  Raises:
    ValueError: in one sentence, if an argument cannot be used or training
      cannot continue.
  """
  # Imported here: sampling does not need the modules of training.
  from imagen_jax.training import loop

  config = configs.resolve(config, overrides)
  return loop.train(
    build.run(config),
    expand(workdir),
    build.as_json(config),
    complete=build.as_json,
    callback=callback,
    allow_config_change=allow_config_change,
    profile_steps=profile_steps,
    on_hang=on_hang,
  )


class Imagen:
  """A cascade with its text encoder, to sample from.

  Attributes:
    cascade: its stages and their sampling settings.
    names: the names of its stages, from small to large.
    reads_text: whether it has a text encoder.
    batch_size: the default number of images that are sampled at a time.
  """

  def __init__(
    self,
    cascade: Cascade,
    *,
    load_net: Callable[[str], Any],
    load_encoder: Callable[[], TextEncoder] | None = None,
    check_net: Callable[[str], None] = lambda name: None,
    identify: Callable[[str], str] = lambda name: "",
    devices: Mesh,
    batch_size: int,
    offload: bool = False,
    height: Container[str] = (),
    settings: Mapping[str, str] | None = None,
  ):
    """Stores a cascade and the functions that read its weights; reads none.

    Args:
      cascade: the stages.
      load_net: called as load_net(name), returns the placed weights of a stage.
      load_encoder: returns the text encoder with its weights; None for a
        cascade without text.
      check_net: called as check_net(name), raises ValueError if load_net cannot
        read a stage's weights.
      identify: called as identify(name), returns a text that changes with the
        weights of a part, a stage or "text".
      devices: the mesh that shards batches.
      batch_size: images at a time; rounded up to a multiple of the number of
        devices that shard the rows.
      offload: as for load().
      height: the names of the stages in which the mesh's tensor axis shards the
        height of images. load_net must not shard their weights over it.
      settings: texts that Samples.settings includes.
    """
    self.cascade = cascade
    self.names = cascade.names
    self.batch_size = meshes.whole_rows(devices, batch_size)
    self._check_net = check_net
    self._devices = devices
    self._offload = offload
    self._height = height
    self._settings = dict(settings or {})
    self.reads_text = load_encoder is not None
    self._parts = Parts(
      (*self.names, TEXT) if self.reads_text else self.names,
      lambda name: load_encoder() if name == TEXT else load_net(name),
      identify,
      devices,
    )

  def encode(self, prompts: str | Sequence[str]) -> TextEmbedding:
    """Encodes prompts, for sample(text=...).

    Returns:
      One row per prompt: tokens float32 [n, L, D] and mask [n, L], in the
      host's
      memory.

    Raises:
      ValueError: if a prompt is empty or no text, or if there is no text
        encoder.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_prompts(prompts)
    if not self.reads_text:
      raise ValueError(NO_TEXT)
    text = self._encode(prompts)
    self._leave(TEXT)
    return text

  def _encode(
    self, prompts: Sequence[str], *rows: NamedSharding
  ) -> TextEmbedding:
    """Encodes checked prompts, sharded by rows if these are given."""
    with compile_cache.enabled(), jax.set_mesh(self._devices):
      return self.part(TEXT)(prompts, *rows)

  def part(self, name: str) -> Any:
    """Returns a stage's weights or the text encoder; reads it if necessary.

    Raises:
      ValueError: if the weights cannot be read.
    """
    return self._parts[name]

  def ids(self, request: Request) -> tuple[str, ...]:
    """Returns the Samples.ids that a request's images will have, in order.

    Raises:
      ValueError: if weights do not exist.
    """
    parts = [self.names[i] for i in request.stages]
    parts += [TEXT] if request.reads_text and self.reads_text else []
    identities = {part: self._parts.identity(part) for part in parts}
    return image_ids(request, self._made_with(request, identities))

  def release(self, part: str) -> None:
    """Frees the weights of a stage or of "text"; the next use reads them again.

    Raises:
      ValueError: if there is no such part.
    """
    self._parts.release(part)

  def sample(
    self,
    prompts: str | Sequence[str] | None,
    *,
    num_images: int = 1,
    seed: int | Sequence[int] = 0,
    index: int | Sequence[int] | None = None,
    guidance: PerStage = None,
    steps: PerStage = None,
    negative_prompt: str | Sequence[str] | None = None,
    stages: tuple[str | None, str | None] | None = None,
    image: Picture | Sequence[Picture] | None = None,
    text: TextEmbedding | None = None,
    batch_size: int | None = None,
    callback: Callback | None = None,
    callback_every: int = 1,
    progress: bool = True,
  ) -> Samples:
    """Samples images from prompts.

    Image i of seed s has the key fold_in(key(s), i), whatever else is sampled
    with it. A batch always has batch_size rows, the last one with copies, so
    that all calls share one program per stage. Other values of guidance, steps
    and seed compile nothing.

    Args:
      prompts: a text, a list of texts, or None for unconditional images.
      num_images: images per prompt.
      seed: 0 to 2**32 - 1. A list of seeds samples image 0 of each seed for
        each prompt.
      index: samples image `index` of the seed alone, or the images of a list.
      guidance: the weight w of Eq. 2; 1 is no guidance. One number is for all
        stages whose config guides. A list has one number per stage, a dict maps
        stage names to numbers.
      steps: the number of sampling steps; one number is for all stages. A list
        or dict is as for guidance.
      negative_prompt: replaces the null text in guidance; one for all prompts,
        or one per prompt.
      stages: (first, last) stage to run, both included; None for an end. (None,
        "base64") ends at 64x64, ("sr256", None) upsamples `image`.
      image: the image that the first stage upsamples, if it is a
        super-resolution stage; one for all prompts, or one per prompt. It is a
        path, a PIL image, or an array [H, W, 3], uint8 or float in [-1, 1]. Its
        central square is resized to the stage's low resolution, with
        antialiasing.
      text: encode(prompts), if already computed.
      batch_size: images at a time; None for the default. Copies fill them up
        to a multiple of the number of devices that shard the rows.
      callback: called as callback(stage, step, x_hat) after steps 0,
        callback_every, 2 callback_every, ... and the last step of each batch.
        x_hat [b, H, W, 3] is in [-1, 1], after guidance and threshold.
      callback_every: steps between two calls.
      progress: whether to print a stage's progress.

    Raises:
      ValueError: if an argument cannot be used, before anything is compiled; or
        if a stage's images are not finite.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    rows = image_rows(
      1 if prompts is None else len(prompts),
      num_images=num_images,
      seed=seed,
      index=index,
    )
    parts = self.stream(
      prompts,
      rows,
      guidance=guidance,
      steps=steps,
      negative_prompt=negative_prompt,
      stages=stages,
      image=image,
      text=text,
      batch_size=batch_size,
      callback=callback,
      callback_every=callback_every,
      progress=progress,
    )
    return join(list(parts))

  def stream(
    self,
    prompts: Sequence[str] | None,
    rows: Sequence[Row],
    **options: Any,
  ) -> Iterator[Samples]:
    """Samples the images of rows; yields each batch as soon as it is finished.

    Use it for large jobs, to save images as they are finished.

    Args:
      prompts: a list of texts, or None.
      rows: the images, each of one of the prompts (request.image_rows).
      **options: guidance, steps, batch_size and so on, as for sample().

    Raises:
      ValueError: at once, if an argument cannot be used; later, if a stage's
        images are not finite.
    """
    return self.run(self.request(prompts, rows, **options))

  def request(
    self,
    prompts: Sequence[str] | None,
    rows: Sequence[Row],
    *,
    batch_size: int | None = None,
    **options: Any,
  ) -> Request:
    """Returns the checked request of stream()'s arguments, for run().

    It also checks the weights of the stages that will run. Reading the text
    encoder, which may take minutes, comes later.

    Raises:
      ValueError: if an argument or a stage's weights cannot be used.
    """
    size = self.batch_size if batch_size is None else batch_size
    if prompts is not None and not self.reads_text:
      raise ValueError(NO_TEXT)
    found = make_request(
      self.cascade, prompts, rows, batch_size=size, **options
    )
    self.check([self.names[number] for number in found.stages])
    return found

  def check(self, stages: Sequence[str]) -> None:
    """Checks the weights of stages; reads none.

    Raises:
      ValueError: if a stage has no weights, or weights of another net.
    """
    for name in stages:
      if name not in self._parts:
        self._check_net(name)

  def run(
    self, request: Request, *, keep_text: bool = True
  ) -> Iterator[Samples]:
    """Runs the stages of a request; yields each batch when it is finished.

    Each of several processes gets all images.

    Args:
      request: the images to sample.
      keep_text: whether the text encoder stays in memory beside the nets.

    Raises:
      ValueError: if a stage's images are not finite.
    """
    batches = Batches(request, self._devices)
    for made in self._batches(batches, keep_text):
      yield batches.all_of(*made)

  def run_share(self, request: Request) -> Iterator[tuple[int, Samples]]:
    """Runs the stages of a request, for large jobs of one or many processes.

    The text encoder leaves memory before the nets are used.

    Yields:
      For each batch, the number of its images, and those that this process is
      to write. Each image is one process's.

    Raises:
      ValueError: if a stage's images are not finite.
    """
    batches = Batches(request, self._devices)
    for made in self._batches(batches, keep_text=False):
      batch, *_ = made
      yield len(batch), batches.share_of(*made)

  def _batches(
    self, batches: Batches, keep_text: bool
  ) -> Iterator[tuple[Sequence[Row], dict[str, np.ndarray], dict[str, str]]]:
    """Runs a request batch by batch; the texts of a round are encoded first.

    Yields:
      The images of a batch, each stage's arrays of the rows that this process
      holds, also of those that fill the batch, and Samples.settings.
    """
    request, identities = batches.request, {}
    for part in batches.rounds():
      texts: list[TextEmbedding | None] = [None] * len(part)
      if self.reads_text:
        texts = batches.texts(part, self._encode)
        if request.reads_text:
          identities[TEXT] = self._parts.identities[TEXT]
        if self._offload or not keep_text:
          self.release(TEXT)
      pairs = list(zip(part, texts, strict=True))
      # With offload each stage's weights are read once, for all batches.
      for group in [pairs] if self._offload else [[pair] for pair in pairs]:
        made: list[dict[str, np.ndarray]] = [{} for _ in group]
        for number in request.stages:
          name = self.names[number]
          net = self.part(name)
          identities[name] = self._parts.identities[name]
          for (batch, text), done in zip(group, made, strict=True):
            before = next(reversed(done.values()), None)
            with compile_cache.enabled():
              inputs = batches.inputs(number, batch, text, before)
            done[name] = self._run(batches, number, net, inputs, len(batch))
          del net
          self._leave(name)
        settings = self._made_with(request, identities)
        for (batch, _), done in zip(group, made, strict=True):
          yield batch, done, settings

  def _made_with(
    self, request: Request, identities: Mapping[str, str]
  ) -> dict[str, str]:
    """Returns Samples.settings, which all images of a request share."""
    return {
      **self._settings,
      "weights": json.dumps(identities, sort_keys=True),
      "version": __version__,
      **request.changes,
    }

  def _run(
    self,
    batches: Batches,
    number: int,
    net: Any,
    inputs: SamplingInputs,
    count: int,
  ) -> np.ndarray:
    """Returns a stage's images of the rows that this process holds.

    The callback gets the first `count` rows of the batch.
    """
    request, rows = batches.request, batches.rows
    name, stage = self.names[number], self.cascade.stages[number]
    sampling, size = request.samplings[number], inputs.keys.shape[0]
    first, steps, settings = 0, sampling.num_steps, sampling.args()
    places = carry_places(rows, name in self._height)
    carry = meshes.put_rows(stage.blank(size), places)
    quiet = not request.progress or jax.process_index() > 0
    with Progress(name, steps, quiet=quiet) as progress, Stopwatch() as watch:
      for last in stops(request, steps):
        new = compile_cache.enabled() if first == 0 else nullcontext()
        with new, jax.set_mesh(self._devices):
          carry = run_stage(
            stage, net, carry, first, last, inputs, settings, rows=places
          )
        if request.callback and is_observed(request, last - 1, steps):
          x_hat = meshes.to_host(carry.x_hat)[:count]
          request.callback(name, last - 1, x_hat)
        jax.block_until_ready(carry)
        if first == 0:
          progress.start(last)  # the first steps' time includes compilation
        if progress.live:
          progress.show(last)
        first = last
      if not progress.live:
        size = f"{stage.size}x{stage.size}"
        progress.log(f"  {name}: {size} in {watch.lap()}")
    images = meshes.local_rows(by_rows(carry.z, rows=rows))
    with shared_errors():
      if not np.isfinite(images).all():
        raise ValueError(
          f"the images of stage {name} are not finite, expected weights and "
          "guidance that give numbers"
        )
    return images

  def _leave(self, name: str) -> None:
    """Frees a used part if offloading."""
    if self._offload:
      self.release(name)
